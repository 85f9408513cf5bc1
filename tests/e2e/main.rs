//! The end-to-end suites: what the contract promises, asked of real processes.

mod applications;
mod bad_input;
mod cluster;
mod config;
mod examples;
mod faults;
mod handshake;
mod harness;
mod http;
mod laravel;
mod nginx;
mod sockets;
