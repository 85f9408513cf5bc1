//! Throttle for lines of the log: one for both crates.

pub use cluster::Seldom;
