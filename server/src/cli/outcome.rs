//! How a command ends, and the exit status that says so.

use std::io;
use std::process::ExitCode;

/// What a command that was carried out came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything that was asked for.
    All,
    /// Not everything: who asked was told what.
    Partly,
    /// A node that was told by SIGQUIT to end at once.
    Quit,
}

/// Why a command was not carried out.
#[derive(Debug)]
pub enum Failure {
    /// It was asked for in a way that cannot be.
    Usage(String),
    /// It failed.
    Failed(String),
    /// Nobody reads what it prints any more, as `head` after some lines: no reason to complain.
    NobodyReads,
}

/// The end of a command.
pub type Outcome = Result<Done, Failure>;

/// `EX_USAGE` of `sysexits.h`: wrong use, a configuration that cannot be.
pub const EXIT_USAGE: u8 = 64;

/// 128 and the number of SIGQUIT, as a shell says it of a process that a signal has ended.
pub const EXIT_QUIT: u8 = 131;

/// Says what went wrong, and with which status to end.
pub fn exit(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(Done::All) | Err(Failure::NobodyReads) => ExitCode::SUCCESS,
        Ok(Done::Partly) => ExitCode::FAILURE,
        Ok(Done::Quit) => ExitCode::from(EXIT_QUIT),
        Err(Failure::Failed(why)) => {
            super::print::note(&why);
            ExitCode::FAILURE
        }
        Err(Failure::Usage(why)) => {
            super::print::note(&why);
            ExitCode::from(EXIT_USAGE)
        }
    }
}

impl Done {
    /// All, if that is so.
    pub fn all(all: bool) -> Self {
        if all { Self::All } else { Self::Partly }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}
