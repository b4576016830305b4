//! `Sec-WebSocket-Extensions` (RFC 6455 section 9.1), and what of it is agreed on.

use super::refusal::Refusal;
use super::request::Request;
use super::token::{is_token, is_token_byte};
use crate::config::Config;
use crate::ws::Agreement;

pub(super) const EXTENSIONS: &str = "Sec-WebSocket-Extensions";

/// One extension that the client offers, with its parameters.
#[derive(Debug, PartialEq, Eq)]
struct Offer<'a> {
    name: &'a [u8],
    parameters: Vec<Parameter<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Parameter<'a> {
    name: &'a [u8],
    /// A token; of a quoted string, what it quotes.
    value: Option<Vec<u8>>,
}

/// What both sides will do from the 101 on.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) deflate: Option<Agreement>,
    /// The value of the response's header, if anything has been agreed on.
    pub(super) answer: Option<String>,
}

/// Chooses among the client's offers, the first that suits us.
///
/// # Errors
///
/// 400 if the header does not follow its grammar (RFC 6455 section 9.1: such a connection fails).
pub(crate) fn negotiate(request: &Request, config: &Config) -> Result<Extensions, Refusal> {
    let mut offers = Vec::new();
    for line in request.header_all(EXTENSIONS) {
        Scanner(line).offers(&mut offers).ok_or_else(|| {
            Refusal::bad_request(
                "Sec-WebSocket-Extensions must be a list of extension names, each with \
                 parameters behind semicolons",
            )
        })?;
    }
    Ok(choose(&offers, config))
}

#[cfg(not(feature = "deflate"))]
fn choose(_: &[Offer<'_>], _: &Config) -> Extensions {
    Extensions::default()
}

#[cfg(feature = "deflate")]
fn choose(offers: &[Offer<'_>], config: &Config) -> Extensions {
    let Some(ours) = &config.deflate else {
        return Extensions::default();
    };
    let wanted = offers.iter().filter(|offer| offer.name == b"permessage-deflate");
    let agreed = wanted.filter_map(|offer| deflate::Wish::read(offer)).find_map(|w| w.grant(ours));
    match agreed {
        None => Extensions::default(),
        Some((agreement, answer)) => Extensions { deflate: Some(agreement), answer: Some(answer) },
    }
}

/// The grammar of the header: what is left of one line.
struct Scanner<'a>(&'a [u8]);

impl<'a> Scanner<'a> {
    /// `extension-list`; `None` if it is none.
    fn offers(&mut self, offers: &mut Vec<Offer<'a>>) -> Option<()> {
        loop {
            self.blanks();
            // Empty elements are passed over (RFC 9110 section 5.6.1.2).
            if !self.0.is_empty() && !self.0.starts_with(b",") {
                offers.push(self.offer()?);
            }
            if self.0.is_empty() {
                return Some(());
            }
            self.byte(b',')?;
        }
    }

    fn offer(&mut self) -> Option<Offer<'a>> {
        let name = self.token()?;
        let mut parameters = Vec::new();
        self.blanks();
        while self.byte(b';').is_some() {
            self.blanks();
            let name = self.token()?;
            self.blanks();
            let mut value = None;
            if self.byte(b'=').is_some() {
                self.blanks();
                value = Some(self.value()?);
                self.blanks();
            }
            parameters.push(Parameter { name, value });
        }
        Some(Offer { name, parameters })
    }

    /// A token, or a quoted string that quotes one.
    fn value(&mut self) -> Option<Vec<u8>> {
        if self.byte(b'"').is_none() {
            return self.token().map(<[u8]>::to_vec);
        }
        let mut value = Vec::new();
        loop {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            match byte {
                b'"' => return is_token(&value).then_some(value),
                b'\\' => {
                    let (&quoted, rest) = self.0.split_first()?;
                    self.0 = rest;
                    value.push(quoted);
                }
                byte => value.push(byte),
            }
        }
    }

    fn token(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().take_while(|byte| is_token_byte(**byte)).count();
        let (token, rest) = self.0.split_at(len);
        self.0 = rest;
        (len > 0).then_some(token)
    }

    fn byte(&mut self, wanted: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[wanted])?;
        Some(())
    }

    fn blanks(&mut self) {
        self.0 = self.0.trim_ascii_start();
    }
}

#[cfg(feature = "deflate")]
mod deflate {
    //! The parameters of permessage-deflate (RFC 7692 section 7.1).

    use super::{Agreement, Offer};
    use crate::config::{Deflate, DeflateMode};

    /// What one offer asks for.
    #[derive(Default)]
    pub(super) struct Wish {
        server_no_context_takeover: bool,
        client_no_context_takeover: bool,
        server_max_window_bits: Option<u8>,
        /// The client can be told; if it says so, it will do with this in any case.
        client_max_window_bits: Option<Option<u8>>,
    }

    impl Wish {
        /// `None` for an offer that must be declined: with an unknown parameter, one that comes
        /// twice, or a value that it cannot have.
        pub(super) fn read(offer: &Offer<'_>) -> Option<Self> {
            let mut wish = Self::default();
            for parameter in &offer.parameters {
                let value = parameter.value.as_deref();
                let repeated = match parameter.name {
                    b"server_no_context_takeover" if value.is_none() => {
                        std::mem::replace(&mut wish.server_no_context_takeover, true)
                    }
                    b"client_no_context_takeover" if value.is_none() => {
                        std::mem::replace(&mut wish.client_no_context_takeover, true)
                    }
                    b"server_max_window_bits" => {
                        let bits = window_bits(value?)?;
                        wish.server_max_window_bits.replace(bits).is_some()
                    }
                    b"client_max_window_bits" => {
                        let bits = match value {
                            None => None,
                            Some(value) => Some(window_bits(value)?),
                        };
                        wish.client_max_window_bits.replace(bits).is_some()
                    }
                    _ => return None,
                };
                if repeated {
                    return None;
                }
            }
            Some(wish)
        }

        /// `None` if we cannot do what it asks for.
        pub(super) fn grant(&self, ours: &Deflate) -> Option<(Agreement, String)> {
            let dedicated = ours.mode == DeflateMode::Dedicated;
            let asked = self.server_max_window_bits.unwrap_or(Deflate::MAX_WINDOW_BITS);
            if asked < Deflate::MIN_WINDOW_BITS {
                return None;
            }
            let granted = self.client_max_window_bits.map(|offered| {
                offered.unwrap_or(Deflate::MAX_WINDOW_BITS).min(ours.client_window_bits)
            });
            let agreement = Agreement {
                server_takeover: dedicated && !self.server_no_context_takeover,
                client_takeover: dedicated && !self.client_no_context_takeover,
                server_window_bits: asked.min(ours.server_window_bits),
                client_window_bits: granted.unwrap_or(Deflate::MAX_WINDOW_BITS),
            };
            let mut answer = String::from("permessage-deflate");
            if !agreement.server_takeover {
                answer.push_str("; server_no_context_takeover");
            }
            if !agreement.client_takeover {
                answer.push_str("; client_no_context_takeover");
            }
            // An offer with this one is accepted by naming it; without, naming it lets the client
            // do with less memory.
            let bits = agreement.server_window_bits;
            if self.server_max_window_bits.is_some() || bits < Deflate::MAX_WINDOW_BITS {
                answer.push_str(&format!("; server_max_window_bits={bits}"));
            }
            // This one may only be named to a client that has offered it.
            if granted.is_some() && agreement.client_window_bits < Deflate::MAX_WINDOW_BITS {
                let bits = agreement.client_window_bits;
                answer.push_str(&format!("; client_max_window_bits={bits}"));
            }
            Some((agreement, answer))
        }
    }

    /// 8 to 15, in decimal without leading zeros.
    fn window_bits(value: &[u8]) -> Option<u8> {
        match value {
            [digit @ b'8'..=b'9'] => Some(digit - b'0'),
            [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
            _ => None,
        }
    }
}
