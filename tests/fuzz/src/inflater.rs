//! Compressed messages of a client: another inflater says the same of them, and neither gives more than was allowed.

use proto::Close;
use server::fuzzing::deflate::{LAST_BLOCKS_MAX, compressed_bytes_max, inflate};
use zlib_rs::{Inflate, InflateFlush, Status};

/// What a message ends with that is left out.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// A block without bytes that says that it is the last: it is read as one only behind whole blocks.
const LAST: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// Two bytes of a limit, then a message.
pub fn check(data: &[u8]) {
    let Some((limit, message)) = data.split_first_chunk() else {
        return;
    };
    let bytes_max = usize::from(u16::from_be_bytes(*limit));
    assert!(compressed_bytes_max(bytes_max) > bytes_max);
    let found = inflate(message, bytes_max);
    if let Ok(bytes) = &found {
        assert!(bytes.len() <= bytes_max);
    }
    match reference(message, bytes_max) {
        Reference::Whole(expected) => {
            assert!(found == Ok(expected), "they read different things");
        }
        Reference::TooBig => assert!(found.is_err(), "it is too big"),
        Reference::TooMany => assert_eq!(found, Err(Close::POLICY)),
        Reference::Broken => assert!(found.is_err(), "it is cut, or none"),
    }
}

enum Reference {
    Whole(Vec<u8>),
    TooBig,
    TooMany,
    Broken,
}

fn reference(message: &[u8], bytes_max: usize) -> Reference {
    let input = [message, &TAIL].concat();
    let mut rest = input.as_slice();
    let mut inflated = vec![0; bytes_max + 1];
    let (mut len, mut last_blocks) = (0, 0);
    loop {
        let mut inflater = Inflate::new(false, 15);
        let room = &mut inflated[len..];
        let status = inflater.decompress(rest, room, InflateFlush::NoFlush);
        len += inflater.total_out() as usize;
        if len > bytes_max {
            return Reference::TooBig;
        }
        rest = &rest[inflater.total_in() as usize..];
        match status {
            // Nothing more has to come behind a last block.
            Ok(Status::StreamEnd) if rest == TAIL => {
                last_blocks += 1;
                break;
            }
            Ok(Status::StreamEnd) if rest.len() < TAIL.len() => return Reference::Broken,
            Ok(Status::StreamEnd) => last_blocks += 1,
            Ok(_) if rest.is_empty() => {
                let before = inflater.total_out();
                let ended = inflater.decompress(&LAST, &mut [0; 8], InflateFlush::NoFlush);
                match ended {
                    Ok(Status::StreamEnd) if inflater.total_out() == before => break,
                    _ => return Reference::Broken,
                }
            }
            _ => return Reference::Broken,
        }
    }
    if last_blocks > LAST_BLOCKS_MAX {
        return Reference::TooMany;
    }
    inflated.truncate(len);
    Reference::Whole(inflated)
}
