//! Any bytes at all as a chunked body.
//!
//! * Nothing panics.
//! * The outcome does not depend on how the bytes are cut into reads.
//! * Data is never longer than what it came in, and what is behind the body is left as it is.
//! * Bytes that are sent in chunks come out as they were, in chunks of any sizes.
//!
//! Input: a seed for the cuts (2), the bytes.
#![no_main]

use coracle::internals::chunked;
use coracle_fuzz::{Input, pieces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let seed = input.u16();
    let bytes = input.0;

    let whole = chunked([bytes]);
    assert_eq!(chunked(pieces(bytes, seed)), whole, "in pieces");
    assert_eq!(chunked(bytes.chunks(1)), whole, "byte by byte");
    if let Ok(Some((data, behind))) = &whole {
        assert!(data.len() + behind + 5 <= bytes.len());
        let body = &bytes[..bytes.len() - behind];
        assert_eq!(chunked([body]), Ok(Some((data.clone(), 0))), "whatever follows");
        assert_eq!(chunked([&body[..body.len() - 1]]), Ok(None), "and not a byte earlier");
    }

    let mut encoded = Vec::new();
    for piece in pieces(bytes, seed).into_iter().filter(|piece| !piece.is_empty()) {
        encoded.extend_from_slice(format!("{:X};x\r\n", piece.len()).as_bytes());
        encoded.extend_from_slice(piece);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(b"0\r\nX: y\r\n\r\n");
    assert_eq!(chunked([&encoded[..]]), Ok(Some((bytes.to_vec(), 0))));
});
