//! Whom a verb is for.

use proto::envelope::{Status, Target};
use proto::{RoomName, SocketId, UserName};

use super::{Partial, SendError};

/// Whom a verb is for, and what it comes to: a [`SocketId`], several of them, a [`User`] or the [`Members`] of a
/// room.
///
/// ```
/// # use unisono_server::testing::TestNode;
/// use unisono_server::{App, Members, SendError, SocketId, Status, Unisono, User};
///
/// async fn greet(unisono: &Unisono, one: SocketId, two: SocketId) -> Result<(), SendError> {
///     let status: Status = unisono.emit(one, "hello", "you").await?;
///     let each: Vec<(SocketId, Status)> = unisono.emit([one, two], "hello", "you two").await?;
///     let devices: u64 = unisono.emit(User("alice"), "hello", "Alice").await?.value;
///     let moved: u64 = unisono.join(Members("/lobby"), "/game").await?.value;
///     println!("{status:?} {each:?} {devices} {moved}");
///     Ok(())
/// }
/// # #[actix_rt::main]
/// # async fn main() {
/// # let node = TestNode::start(App::new()).await;
/// # let mut a = node.connect("/lobby").await;
/// # let mut b = node.connect("/lobby").await;
/// # greet(&node.unisono(), a.id(), b.id()).await.unwrap();
/// # assert_eq!(a.event("hello").await, "you");
/// # assert_eq!(a.event("hello").await, "you two");
/// # assert_eq!(b.event("hello").await, "you two");
/// # assert_eq!(node.unisono().members("/game").await.unwrap().value.count, 2);
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` names no sockets",
    note = "that is a `SocketId`, several of them, `User(name)` or `Members(room)`"
)]
pub trait To {
    /// What is known afterwards: the status of a socket, of each, or how many sockets there were.
    type Reached: Send + 'static;

    #[doc(hidden)]
    fn target(self) -> Result<Target, SendError>;

    #[doc(hidden)]
    fn reached(reached: Reached) -> Self::Reached;
}

/// All sockets of the user of that name, on any node.
#[derive(Clone, Copy, Debug)]
pub struct User<'a>(pub &'a str);

/// All sockets that are in the room of that name, on any node.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a>(pub &'a str);

/// What an act came to, before it is known who asked.
#[doc(hidden)]
pub enum Reached {
    Each(Vec<(SocketId, Status)>),
    All(Partial<u64>),
}

impl Reached {
    fn each(self) -> Vec<(SocketId, Status)> {
        match self {
            Self::Each(statuses) => statuses,
            Self::All(_) => Vec::new(),
        }
    }

    fn all(self) -> Partial<u64> {
        match self {
            Self::All(count) => count,
            Self::Each(_) => Partial::default(),
        }
    }
}

impl To for SocketId {
    type Reached = Status;

    fn target(self) -> Result<Target, SendError> {
        Ok(Target::Sockets(vec![self]))
    }

    fn reached(reached: Reached) -> Status {
        let statuses = reached.each();
        statuses
            .first()
            .map_or(Status::Timeout, |(_, status)| *status)
    }
}

impl To for &SocketId {
    type Reached = Status;

    fn target(self) -> Result<Target, SendError> {
        (*self).target()
    }

    fn reached(reached: Reached) -> Status {
        SocketId::reached(reached)
    }
}

impl To for &Vec<SocketId> {
    type Reached = Vec<(SocketId, Status)>;

    fn target(self) -> Result<Target, SendError> {
        self.clone().target()
    }

    fn reached(reached: Reached) -> Self::Reached {
        reached.each()
    }
}

impl To for Vec<SocketId> {
    type Reached = Vec<(SocketId, Status)>;

    fn target(self) -> Result<Target, SendError> {
        Ok(Target::Sockets(self))
    }

    fn reached(reached: Reached) -> Self::Reached {
        reached.each()
    }
}

impl To for &[SocketId] {
    type Reached = Vec<(SocketId, Status)>;

    fn target(self) -> Result<Target, SendError> {
        self.to_vec().target()
    }

    fn reached(reached: Reached) -> Self::Reached {
        reached.each()
    }
}

impl<const N: usize> To for [SocketId; N] {
    type Reached = Vec<(SocketId, Status)>;

    fn target(self) -> Result<Target, SendError> {
        self.to_vec().target()
    }

    fn reached(reached: Reached) -> Self::Reached {
        reached.each()
    }
}

impl To for User<'_> {
    type Reached = Partial<u64>;

    fn target(self) -> Result<Target, SendError> {
        Ok(Target::User(UserName::parse(self.0)?))
    }

    fn reached(reached: Reached) -> Partial<u64> {
        reached.all()
    }
}

impl To for Members<'_> {
    type Reached = Partial<u64>;

    fn target(self) -> Result<Target, SendError> {
        Ok(Target::Room(RoomName::parse(self.0)?))
    }

    fn reached(reached: Reached) -> Partial<u64> {
        reached.all()
    }
}

/// One room, or several.
///
/// ```
/// use unisono_server::{SendError, Unisono};
///
/// async fn tell(unisono: &Unisono) -> Result<(), SendError> {
///     unisono.publish("/news", "headline", "it works").await?;
///     unisono.publish(["/news", "/sports"], "headline", "each socket gets it once").await?;
///     Ok(())
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` names no rooms",
    note = "that is a text, or several: `\"/news\"`, `[\"/news\", \"/sports\"]`"
)]
pub trait Rooms {
    #[doc(hidden)]
    fn rooms(self) -> Result<Vec<RoomName>, SendError>;
}

impl Rooms for &str {
    fn rooms(self) -> Result<Vec<RoomName>, SendError> {
        Ok(vec![RoomName::parse(self)?])
    }
}

impl Rooms for &String {
    fn rooms(self) -> Result<Vec<RoomName>, SendError> {
        self.as_str().rooms()
    }
}

impl Rooms for String {
    fn rooms(self) -> Result<Vec<RoomName>, SendError> {
        self.as_str().rooms()
    }
}

impl Rooms for Vec<String> {
    fn rooms(self) -> Result<Vec<RoomName>, SendError> {
        self[..].rooms()
    }
}

impl Rooms for &[&str] {
    fn rooms(self) -> Result<Vec<RoomName>, SendError> {
        self.iter().map(|room| Ok(RoomName::parse(room)?)).collect()
    }
}

impl<const N: usize> Rooms for [&str; N] {
    fn rooms(self) -> Result<Vec<RoomName>, SendError> {
        self[..].rooms()
    }
}

impl Rooms for &[String] {
    fn rooms(self) -> Result<Vec<RoomName>, SendError> {
        self.iter().map(|room| Ok(RoomName::parse(room)?)).collect()
    }
}
