//! A terminal for a program that behaves differently on one.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A program on a terminal of its own, which Python's `pty` makes; killed and reaped on drop.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    shown: Vec<u8>,
}

/// Ends as the program does.
const SPAWN: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

// === impl Terminal ===

impl Terminal {
    /// Starts the program of that command, with its arguments and variables.
    ///
    /// # Panics
    /// When there is no Python.
    pub fn spawn(command: &Command) -> Self {
        let mut python = Command::new("python3");
        python.args(["-c", SPAWN]);
        python.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => python.env(key, value),
                None => python.env_remove(key),
            };
        }
        let mut child = python
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        Self {
            stdin: child.stdin.take().expect("it is piped"),
            stdout: child.stdout.take().expect("it is piped"),
            child,
            shown: Vec::new(),
        }
    }

    /// Waits until what is shown ends so.
    ///
    /// # Panics
    /// When the program ends before.
    #[track_caller]
    pub fn until(&mut self, end: &str) {
        let mut byte = [0];
        while !self.shown.ends_with(end.as_bytes()) {
            let count = self.stdout.read(&mut byte).expect("it shows");
            assert_eq!(count, 1, "no {end} in {}", self.text());
            self.shown.extend(byte);
        }
    }

    /// Types that.
    ///
    /// # Panics
    /// When nobody reads it.
    pub fn enter(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).expect("it reads");
    }

    /// Waits for the end: all that was shown, and the exit status.
    ///
    /// # Panics
    /// When a signal ends it.
    pub fn end(mut self) -> (String, i32) {
        self.stdout.read_to_end(&mut self.shown).expect("it ends");
        let status = self.child.wait().expect("it ends");
        (self.text(), status.code().expect("it exits"))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both do nothing where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
