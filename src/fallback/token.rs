//! The tokens by which the requests of one client find its session: signed, so that nobody can make one.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::hub::SessionId;

type Signer = Hmac<Sha256>;

/// The key's bytes, at least: as many as the signature has (RFC 2104 section 3).
pub(crate) const KEY_BYTES: usize = 32;

/// A layout of tokens. Another one would have another number.
const VERSION: u8 = 1;

const SIGNATURE: usize = 32;
const NONCE_AT: usize = 1 + 8;
const SIGNED: usize = NONCE_AT + 16;
const WHOLE: usize = SIGNED + SIGNATURE;

/// What a token says, and nobody else knows: 128 random bits beside the session's number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Secret {
    pub(super) session: u64,
    pub(super) nonce: u128,
}

/// Signs tokens and checks them.
#[derive(Clone)]
pub(super) struct Key(Box<[u8]>);

impl Key {
    pub(super) fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn signer(&self) -> Option<Signer> {
        // HMAC takes keys of any length.
        Signer::new_from_slice(&self.0).ok()
    }

    /// The token of a session.
    pub(super) fn sign(&self, session: SessionId, nonce: u128) -> Option<String> {
        let mut token = Vec::with_capacity(WHOLE);
        token.push(VERSION);
        token.extend_from_slice(&session.as_u64().to_be_bytes());
        token.extend_from_slice(&nonce.to_be_bytes());
        let mut signer = self.signer()?;
        signer.update(&token);
        token.extend_from_slice(&signer.finalize().into_bytes());
        Some(BASE64URL_NOPAD.encode(&token))
    }

    /// What a token says, if it is one of ours. Takes as long for each that is none.
    pub(super) fn open(&self, token: &str) -> Option<Secret> {
        // No longer one is decoded.
        if token.len() != BASE64URL_NOPAD.encode_len(WHOLE) {
            return None;
        }
        let token = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        let (signed, signature) = token.split_at_checked(SIGNED)?;
        let mut signer = self.signer()?;
        signer.update(signed);
        signer.verify_slice(signature).ok()?;
        let (session, nonce) = signed.get(1..)?.split_first_chunk()?;
        (signed.first() == Some(&VERSION)).then_some(Secret {
            session: u64::from_be_bytes(*session),
            nonce: u128::from_be_bytes(nonce.try_into().ok()?),
        })
    }
}

/// Nothing of it.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key::new([byte; KEY_BYTES])
    }

    #[test]
    fn a_token_says_what_was_signed() {
        let token = key(1).sign(SessionId::of(77), u128::MAX - 3).unwrap();
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        let secret = key(1).open(&token).unwrap();
        assert_eq!((secret.session, secret.nonce), (77, u128::MAX - 3));
    }

    #[test]
    fn a_token_of_another_key_or_with_any_bit_changed_is_none() {
        let token = key(1).sign(SessionId::of(77), 9).unwrap();
        assert!(key(2).open(&token).is_none());
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(key(1).open(&BASE64URL_NOPAD.encode(&other)).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_no_token_is_none() {
        let token = key(1).sign(SessionId::of(77), 9).unwrap();
        let longer = format!("{token}A");
        for wrong in ["", "A", &token[1..], &longer, &"A".repeat(100_000), &"ä".repeat(38)] {
            assert!(key(1).open(wrong).is_none());
        }
    }

    #[test]
    fn a_key_does_not_reach_a_log_by_debug() {
        assert_eq!(format!("{:?}", key(b'k')), "Key(..)");
    }
}
