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

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;
    use ::http::StatusCode;

    /// A request with these values of the header, each on a line of its own.
    fn request(lines: &[&str]) -> Request {
        let mut head = String::from("GET / HTTP/1.1\r\nHost: a\r\n");
        for line in lines {
            head.push_str(&format!("Sec-WebSocket-Extensions: {line}\r\n"));
        }
        read(format!("{head}\r\n").as_bytes()).unwrap()
    }

    /// Names, with parameters as they are understood.
    fn understood(line: &str) -> Option<Vec<String>> {
        let mut offers = Vec::new();
        Scanner(line.as_bytes()).offers(&mut offers)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let parameter = |it: &Parameter<'_>| match &it.value {
            None => format!(";{}", text(it.name)),
            Some(value) => format!(";{}={}", text(it.name), text(value)),
        };
        let offer = |it: &Offer<'_>| {
            text(it.name) + &it.parameters.iter().map(parameter).collect::<String>()
        };
        Some(offers.iter().map(offer).collect())
    }

    #[test]
    fn a_header_is_a_list_of_extensions_with_parameters() {
        for (line, offers) in [
            ("foo", &["foo"][..]),
            ("foo, bar; baz=2", &["foo", "bar;baz=2"]),
            ("foo;bar;baz", &["foo;bar;baz"]),
            ("foo\t;\tbar\t=\t1 ,\tqux", &["foo;bar=1", "qux"]),
            ("foo;bar=\"10\"", &["foo;bar=10"]),
            ("foo;bar=\"\\1\\0\" ; baz , qux", &["foo;bar=10;baz", "qux"]),
            // Names and values are any tokens (RFC 9110 section 5.6.2).
            ("x!#$%&'*+-.^_`|~9;!=~", &["x!#$%&'*+-.^_`|~9;!=~"]),
            // The same twice is for the extension to judge.
            ("foo;a;a=1, foo", &["foo;a;a=1", "foo"]),
            // Empty elements are passed over (RFC 9110 section 5.6.1.2).
            (",, foo ,\t, bar,", &["foo", "bar"]),
            (" ,", &[]),
            ("", &[]),
        ] {
            let offers = offers.iter().map(ToString::to_string).collect();
            assert_eq!(understood(line), Some(offers), "{line}");
        }
    }

    #[test]
    fn what_is_no_list_of_extensions_is_refused() {
        let malformed = [
            "foo bar",
            "foo;",
            "foo;;bar",
            "foo; ,bar",
            "foo=1",
            ";foo",
            "=",
            "foo;=1",
            "foo;bar=",
            "foo;bar= ;baz",
            "foo;bar=1=2",
            "foo;bar=1 2",
            "foo;bar=a/b",
            "foo/bar",
            "\"foo\"",
            "foo;\"bar\"",
            "foo;bar=\"1",
            "foo;bar=\"1\\",
            "foo;bar=\"1\\\"",
            "foo;bar=\"1\"2",
            "foo;bar=1\"2\"",
            // What is quoted must be a token too (RFC 6455 section 9.1).
            "foo;bar=\"\"",
            "foo;bar=\"1 2\"",
            "foo;bar=\"1,2\"",
            "foo;bar=\"\\\"\"",
            "foo;bar=\"\\\\\"",
            "foo;bar='1 2'",
            "caf\u{e9}",
        ];
        for line in malformed {
            assert_eq!(understood(line), None, "{line}");
            // Whether we compress or not, and wherever it stands: RFC 6455 section 9.1 asks the
            // recipient to fail the connection, not to pass over what it does not want to use.
            for lines in [&[line][..], &["foo", line], &[line, "permessage-deflate"]] {
                let refusal = negotiate(&request(lines), &Config::default()).unwrap_err();
                assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{lines:?}");
                assert!(refusal.reason.contains(EXTENSIONS), "{refusal}");
            }
        }
    }

    #[cfg(feature = "deflate")]
    mod deflate {
        use super::*;
        use crate::config::Deflate;

        const NAME: &str = "permessage-deflate";

        fn with(deflate: Option<Deflate>, lines: &[&str]) -> Extensions {
            negotiate(&request(lines), &Config { deflate, ..Config::default() }).unwrap()
        }

        /// The answer's parameters, without the name of the extension; `None`: it was declined.
        /// Whatever it says must be what we do.
        #[track_caller]
        fn answer(ours: &Deflate, lines: &[&str]) -> Option<String> {
            let extensions = with(Some(ours.clone()), lines);
            let Some(answer) = extensions.answer else {
                assert_eq!(extensions.deflate, None);
                return None;
            };
            let agreed = extensions.deflate.unwrap();
            let mut parameters = answer.split("; ");
            assert_eq!(parameters.next(), Some(NAME), "{answer}");
            let mut said = Agreement {
                server_takeover: true,
                client_takeover: true,
                server_window_bits: 15,
                client_window_bits: 15,
            };
            for parameter in parameters.clone() {
                match parameter.split_once('=') {
                    None if parameter == "server_no_context_takeover" => {
                        said.server_takeover = false;
                    }
                    None if parameter == "client_no_context_takeover" => {
                        said.client_takeover = false;
                    }
                    Some(("server_max_window_bits", bits)) => {
                        said.server_window_bits = bits.parse().unwrap();
                    }
                    Some(("client_max_window_bits", bits)) => {
                        said.client_window_bits = bits.parse().unwrap();
                    }
                    _ => panic!("{parameter}"),
                }
            }
            assert_eq!(said, agreed, "{answer}");
            Some(parameters.collect::<Vec<_>>().join("; "))
        }

        /// What a dedicated server with the largest windows says to one offer with these
        /// parameters.
        #[track_caller]
        fn dedicated(parameters: &str) -> Option<String> {
            answer(&Deflate::dedicated(), &[&format!("{NAME}{parameters}")])
        }

        const BOTH: &str = "server_no_context_takeover; client_no_context_takeover";

        #[test]
        fn off_by_default_and_only_for_those_who_offer_it() {
            assert!(Config::default().deflate.is_none());
            let offer = "permessage-deflate; client_max_window_bits";
            for extensions in [with(None, &[offer]), with(Some(Deflate::shared()), &[])] {
                assert_eq!((extensions.deflate, extensions.answer), (None, None));
            }
        }

        #[test]
        fn shared_mode_declines_takeover_on_both_sides_and_dedicated_mode_wants_it() {
            for (offered, in_shared, in_dedicated) in [
                ("", BOTH, ""),
                ("; server_no_context_takeover", BOTH, "server_no_context_takeover"),
                ("; client_no_context_takeover", BOTH, "client_no_context_takeover"),
                ("; client_no_context_takeover; server_no_context_takeover", BOTH, BOTH),
            ] {
                let offer = format!("{NAME}{offered}");
                assert_eq!(answer(&Deflate::shared(), &[&offer]).as_deref(), Some(in_shared));
                assert_eq!(answer(&Deflate::dedicated(), &[&offer]).as_deref(), Some(in_dedicated));
            }
        }

        #[test]
        fn a_takeover_parameter_has_no_value() {
            for name in ["server_no_context_takeover", "client_no_context_takeover"] {
                for value in ["1", "true", "\"x\"", "10"] {
                    assert_eq!(dedicated(&format!("; {name}={value}")), None, "{name}={value}");
                }
            }
        }

        #[test]
        fn the_windows_size_is_a_number_from_8_to_15_without_leading_zeros() {
            for name in ["server_max_window_bits", "client_max_window_bits"] {
                for value in [
                    "0", "1", "7", "16", "17", "19", "80", "100", "08", "09", "010", "015", "+9",
                    "-9", "9.0", "0x9", "1e1", "ten", "*",
                ] {
                    assert_eq!(dedicated(&format!("; {name}={value}")), None, "{name}={value}");
                }
                for value in 9..=15 {
                    assert!(dedicated(&format!("; {name}={value}")).is_some(), "{name}={value}");
                    assert!(dedicated(&format!("; {name}=\"{value}\"")).is_some(), "{value}");
                }
            }
        }

        #[test]
        fn the_clients_bound_of_our_window_is_kept_and_answered() {
            // Without a value it would say nothing (RFC 7692 section 7.1.2.1).
            assert_eq!(dedicated("; server_max_window_bits"), None);
            // zlib's compressor cannot do with 256 bytes.
            assert_eq!(dedicated("; server_max_window_bits=8"), None);
            for asked in 9..=15 {
                let offer = format!("{NAME}; server_max_window_bits={asked}");
                for ours in 9..=15 {
                    let deflate = Deflate { server_window_bits: ours, ..Deflate::dedicated() };
                    let said = format!("server_max_window_bits={}", asked.min(ours));
                    assert_eq!(answer(&deflate, &[&offer]), Some(said));
                }
            }
        }

        #[test]
        fn our_own_smaller_window_is_announced() {
            for bits in 9..=15 {
                let deflate = Deflate { server_window_bits: bits, ..Deflate::dedicated() };
                let said = if bits < 15 {
                    format!("server_max_window_bits={bits}")
                } else {
                    String::new()
                };
                assert_eq!(answer(&deflate, &[NAME]), Some(said));
            }
        }

        /// A client that has not offered the parameter must fail the connection if it is answered
        /// (RFC 7692 section 7.1.2.2).
        #[test]
        fn the_clients_window_is_named_only_to_a_client_that_has_offered_it() {
            for ours in 9..=15 {
                let deflate = Deflate { client_window_bits: ours, ..Deflate::dedicated() };
                let said = |bits: u8| match bits {
                    15 => String::new(),
                    bits => format!("client_max_window_bits={bits}"),
                };
                assert_eq!(answer(&deflate, &[NAME]), Some(String::new()), "{ours}");
                let offer = format!("{NAME}; client_max_window_bits");
                assert_eq!(answer(&deflate, &[&offer]), Some(said(ours)));
                for offered in 8..=15 {
                    let offer = format!("{NAME}; client_max_window_bits={offered}");
                    assert_eq!(answer(&deflate, &[&offer]), Some(said(offered.min(ours))));
                }
            }
        }

        #[test]
        fn an_offer_with_a_parameter_twice_or_an_unknown_one_is_declined() {
            for parameters in [
                "; server_no_context_takeover; server_no_context_takeover",
                "; client_no_context_takeover; client_no_context_takeover",
                "; server_max_window_bits=10; server_max_window_bits=10",
                "; server_max_window_bits=10; server_max_window_bits=11",
                "; client_max_window_bits; client_max_window_bits",
                "; client_max_window_bits; client_max_window_bits=10",
                "; client_max_window_bits=10; client_max_window_bits",
                "; foo",
                "; foo=1",
                "; server_no_context_takeover; foo",
                "; no_context_takeover",
                "; max_window_bits=10",
                "; server_max_window_bits =10; client_max_window_bits2",
            ] {
                assert_eq!(dedicated(parameters), None, "{parameters}");
            }
        }

        #[test]
        fn another_extension_is_declined() {
            for line in [
                "foo",
                "permessage-bzip2",
                "permessage-deflat",
                "permessage-deflate2",
                "x-permessage-deflate",
                "x-webkit-deflate-frame",
                "foo; permessage-deflate",
            ] {
                assert_eq!(answer(&Deflate::shared(), &[line]), None, "{line}");
            }
        }

        #[test]
        fn the_first_offer_that_suits_wins_over_all_lines() {
            let first = "permessage-deflate; server_max_window_bits=10";
            let second = "permessage-deflate; server_max_window_bits=11";
            let bits = |bits| Some(format!("server_max_window_bits={bits}"));
            let ours = Deflate::dedicated();
            for lines in [
                &[&*format!("{first}, {second}")][..],
                &[first, second],
                &["foo; bar, baz", first, second],
                &[&*format!("foo, {first}, bar"), second],
                &["permessage-deflate; foo", first, second],
                &["permessage-deflate; server_max_window_bits=8", first, second],
                &["permessage-deflate; server_max_window_bits", first, second],
                &["permessage-deflate; client_max_window_bits=7", first, second],
                &["permessage-deflate; server_no_context_takeover=1", first, second],
                &["", first, "", second],
            ] {
                assert_eq!(answer(&ours, lines), bits(10), "{lines:?}");
            }
            assert_eq!(answer(&ours, &[second, first]), bits(11));
            assert_eq!(answer(&ours, &["permessage-deflate; foo", "bar"]), None);
        }

        /// What clients really send.
        #[test]
        fn browsers_and_libraries_get_what_they_ask_for() {
            for (offer, in_dedicated) in [
                // Chromium, Firefox, npm ws.
                ("permessage-deflate; client_max_window_bits", ""),
                // Safari.
                ("permessage-deflate", ""),
                // Python websockets.
                (
                    "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
                    "server_max_window_bits=12; client_max_window_bits=12",
                ),
            ] {
                assert_eq!(answer(&Deflate::dedicated(), &[offer]).as_deref(), Some(in_dedicated));
                let shared = if in_dedicated.is_empty() {
                    BOTH.to_owned()
                } else {
                    format!("{BOTH}; {in_dedicated}")
                };
                assert_eq!(answer(&Deflate::shared(), &[offer]), Some(shared));
            }
        }
    }
}
