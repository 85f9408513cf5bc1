//! What a handler says to a handshake.

use std::any::Any;
use std::fmt;

use super::Context;

/// Lets a client in.
///
/// ```
/// use unisono_server::Accept;
///
/// let accept = Accept::new().user("alice").context(7_u64);
/// ```
#[derive(Default)]
pub struct Accept {
    pub(crate) user: Option<String>,
    pub(crate) rooms: Option<Vec<String>>,
    pub(crate) context: Context,
}

/// Turns a client away, with an HTTP status.
///
/// ```
/// use unisono_server::Refuse;
///
/// let refuse = Refuse::status(402).message("the trial is over");
/// ```
#[derive(Clone, Debug)]
pub struct Refuse {
    pub(crate) status: u16,
    pub(crate) message: String,
}

impl Accept {
    /// Lets the client in, as whom `[auth]` says that it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says who it is: 1 to 200 bytes without control characters, or the handshake fails.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Says which rooms it may be in and publish to, as patterns; otherwise all that the rules allow. One that is
    /// no pattern makes the handshake fail.
    #[must_use]
    pub fn rooms<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.rooms = Some(patterns.into_iter().map(Into::into).collect());
        self
    }

    /// Puts a value into the context of the socket, for its handlers.
    #[must_use]
    pub fn context<T: Any + Send + Sync>(self, value: T) -> Self {
        self.context.set(value);
        self
    }
}

impl Refuse {
    /// With that status, which should be of 400 to 599; anything else becomes 403.
    pub fn status(status: u16) -> Self {
        let status = if (400..600).contains(&status) {
            status
        } else {
            403
        };
        Self {
            status,
            message: "the application does not let this client in".to_owned(),
        }
    }

    /// 401, for who has not shown who it is.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::status(401).message(message)
    }

    /// 403, for who may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::status(403).message(message)
    }

    /// Says why, to the client.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }
}

impl fmt::Debug for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
