//! Who is who in the cluster: nodes and sockets.

use std::fmt;

use uuid::Uuid;

/// A running node: 48 random bits, drawn anew at every start, so that a restarted node is a new node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

/// A client connection, for as long as it lives: a UUID version 8 that names the node and the worker
/// thread which hold it. Unique in the cluster, never used again, and not a secret.
///
/// ```text
/// 48 bits node | 4 bits version (8) | 12 bits worker | 2 bits variant | 62 random bits
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(Uuid);

/// A text that is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A node id is 12 lower-case hexadecimal digits.
    #[error("a node id is 12 lower-case hexadecimal digits")]
    Node,
    /// A socket id is a UUID version 8.
    #[error("a socket id is a lower-case, hyphenated UUID of version 8")]
    Socket,
}

/// Most worker threads that a socket id can tell apart.
pub const WORKERS_MAX: usize = 1 << 12;

// === impl NodeId ===

impl NodeId {
    const MASK: u64 = (1 << 48) - 1;

    /// Takes the low 48 bits of `random`.
    pub fn new(random: u64) -> Self {
        Self(random & Self::MASK)
    }

    /// Reads 12 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 12 || !text.bytes().all(lower_hex) {
            return Err(IdError::Node);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| IdError::Node)
    }

    /// The 48 bits.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl SocketId ===

impl SocketId {
    /// The id of a socket on worker `worker` of `node`. Of `random`, 62 bits are used.
    ///
    /// # Panics
    ///
    /// When `worker` is not below [`WORKERS_MAX`].
    pub fn new(node: NodeId, worker: usize, random: u64) -> Self {
        assert!(worker < WORKERS_MAX, "a worker index has 12 bits");
        let high = (u128::from(node.0) << 16) | worker as u128;
        let bits = (high << 64) | u128::from(random);
        // `new_v8` writes version and variant over the bits that are theirs.
        Self(Uuid::new_v8(bits.to_be_bytes()))
    }

    /// Reads the one canonical text form.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let canonical = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        if !canonical {
            return Err(IdError::Socket);
        }
        let uuid = Uuid::try_parse(text).map_err(|_| IdError::Socket)?;
        Self::from_uuid(uuid)
    }

    /// Reads the 16 bytes of [`SocketId::as_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        let uuid = Uuid::from_slice(bytes).map_err(|_| IdError::Socket)?;
        Self::from_uuid(uuid)
    }

    fn from_uuid(uuid: Uuid) -> Result<Self, IdError> {
        let ours = uuid.get_version_num() == 8 && uuid.get_variant() == uuid::Variant::RFC4122;
        ours.then_some(Self(uuid)).ok_or(IdError::Socket)
    }

    /// The node that holds the socket.
    pub fn node(self) -> NodeId {
        NodeId((self.0.as_u128() >> 80) as u64)
    }

    /// The worker thread, on that node, that holds the socket.
    pub fn worker(self) -> usize {
        (self.0.as_u128() >> 64) as usize & (WORKERS_MAX - 1)
    }

    /// The id as it crosses the cluster.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl serde::Serialize for SocketId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SocketId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for SocketId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_socket_id_names_its_node_and_worker(node: u64, worker in 0..WORKERS_MAX, random: u64) {
            let node = NodeId::new(node);
            let id = SocketId::new(node, worker, random);
            prop_assert_eq!(id.node(), node);
            prop_assert_eq!(id.worker(), worker);
            prop_assert_eq!(SocketId::parse(&id.to_string()), Ok(id));
            prop_assert_eq!(SocketId::from_bytes(id.as_bytes()), Ok(id));
            prop_assert_eq!(NodeId::parse(&node.to_string()), Ok(node));
            let text = id.to_string();
            prop_assert_eq!(text[..13].replace('-', ""), node.to_string());
        }

        #[test]
        fn sixty_two_random_bits_stay(random: u64) {
            let id = SocketId::new(NodeId::new(7), 1, random);
            let kept = u64::from_be_bytes(id.as_bytes()[8..].try_into().unwrap());
            prop_assert_eq!(kept << 2, random << 2);
        }

        #[test]
        fn other_texts_are_no_ids(text in "\\PC{0,40}") {
            prop_assert!(SocketId::parse(&text).is_err());
        }
    }

    #[test]
    fn only_the_canonical_form_is_read() {
        let text = SocketId::new(NodeId::new(0xabcdef), 3, 9).to_string();
        for other in [
            text.to_uppercase(),
            text.replace('-', ""),
            format!("{{{text}}}"),
            "f47ac10b-58cc-4372-a567-0e02b2c3d479".to_owned(),
        ] {
            assert_eq!(SocketId::parse(&other), Err(IdError::Socket), "{other}");
        }
        assert_eq!(NodeId::parse("ABCDEF012345"), Err(IdError::Node));
        assert_eq!(NodeId::parse("+bcdef012345"), Err(IdError::Node));
    }
}
