//! The end-to-end suites: what the contract promises, asked of real processes.

mod alarms;
mod applications;
mod auth;
mod backends;
mod bad_input;
mod browser;
mod cli;
mod cluster;
mod config;
mod examples;
mod faults;
mod handshake;
mod harness;
mod hooks;
mod http;
mod laravel;
mod limits;
mod log;
mod metrics;
mod nginx;
mod occupancy;
mod rebalance;
mod sockets;
mod sse;
mod tls;
mod users;
