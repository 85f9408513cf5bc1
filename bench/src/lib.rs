//! Measures nodes on this machine, and writes a report of it.
//!
//! The [`matrix`] says which cells there are and when each is measured, [`cell`] measures one with real processes,
//! [`results`] are what came of it, [`machine`] says where. The report is made of nothing but the results:
//! [`document`] is its text, [`charts`] says what the plots show, [`plot`] draws them.

pub mod matrix;
pub mod results;

pub mod cell;
pub mod machine;

pub mod charts;
pub mod document;
pub mod plot;
