//! Settings: where they come from, and what is said about wrong ones. What each does is in
//! `settings_effects.rs`, `settings_http.rs` and `settings_with.rs`.
//!
//! `cargo test` builds the example that is started here first; `cargo test --test settings` does not.

#[path = "support/example.rs"]
mod example;
#[path = "support/settings.rs"]
mod settings;
mod support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use coracle::config::{Config, Setting};
use example::{Example, path};
use rustix::process::Signal;
use support::*;

/// What is said about these settings.
#[track_caller]
fn refused(settings: &[(&str, &str)]) -> String {
    Config::from_pairs(settings.iter().copied()).expect_err("they are wrong").to_string()
}

/// Each of these is in it.
#[track_caller]
fn expect(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

// A setting that was added without its effect, or whose effect got lost, looks like one that works.
#[test]
fn every_setting_has_a_test_of_what_it_does() {
    let sources = [
        include_str!("settings_effects.rs"),
        include_str!("settings_http.rs"),
        include_str!("settings_with.rs"),
    ];
    let mut tested = std::collections::HashSet::new();
    for source in sources {
        // From one test to the next.
        for test in source.split("#[test]\nfn ").skip(1) {
            // The longest name with which its own begins: one setting's may begin with another's.
            let is_its = |name: &str| test.starts_with(&format!("{}_", name.to_lowercase()));
            let name = Config::settings()
                .map(Setting::name)
                .filter(|name| is_its(name))
                .max_by_key(|name| name.len())
                .unwrap_or_else(|| panic!("no setting's: {}", test.lines().next().unwrap()));
            if source.contains(&format!("({name:?}, ")) {
                tested.insert(name);
            }
        }
    }
    let untested: Vec<_> =
        Config::settings().map(Setting::name).filter(|name| !tested.contains(name)).collect();
    assert!(untested.is_empty(), "{untested:?}");
}

#[test]
fn a_wrong_value_is_named_with_its_setting_and_what_is_allowed() {
    for (name, value, allowed) in [
        ("WEBSOCKET_HOST", "0.0.0.0:9090", "the port belongs into WEBSOCKET_PORT"),
        ("WEBSOCKET_HOST", "http://localhost", "allowed is an address"),
        ("WEBSOCKET_PORT", "65536", "allowed is a whole number from 0 to 65535"),
        ("WEBSOCKET_PORT", "-1", "allowed is a whole number from 0 to 65535"),
        ("WEBSOCKET_PORT", "9090 ", "allowed is a whole number from 0 to 65535"),
        ("WEBSOCKET_PORT", "tcp://10.0.0.11:9090", "enableServiceLinks: false"),
        ("WEBSOCKET_WORKERS", "0", "allowed is a whole number from 1 to 1024, or auto"),
        ("WEBSOCKET_PONG_TIMEOUT", "0", "500ms, 30s, 5m, 1h"),
        ("WEBSOCKET_PONG_TIMEOUT", "off", "500ms, 30s, 5m, 1h"),
        ("WEBSOCKET_IDLE_TIMEOUT", "ten", "500ms, 30s, 5m, 1h, or off"),
        ("WEBSOCKET_IDLE_TIMEOUT", "9999999h", "at most a year"),
        ("WEBSOCKET_LIFETIME_JITTER", "off", ", or 0, or auto"),
        ("WEBSOCKET_MAX_MESSAGE_SIZE", "64kb", "64k, 16m, 1g (KiB, MiB, GiB)"),
        ("WEBSOCKET_MAX_MESSAGE_SIZE", "0", "a number of bytes from 1"),
        ("WEBSOCKET_MAX_MESSAGE_SIZE", "9999999999g", "a number of bytes from 1"),
        ("WEBSOCKET_MAX_SESSIONS", "many", ", or auto"),
        ("WEBSOCKET_UNIX_MODE", "0888", "permissions of a file in octal"),
        ("WEBSOCKET_UNIX_MODE", "0444", "somebody must be able to write"),
        (
            "WEBSOCKET_ORIGINS",
            "https://a.example,example.com",
            "\"example.com\" is no origin; allowed is same, any",
        ),
        ("WEBSOCKET_TRUSTED_PROXIES", "10.1.2.3/8", "write 10.0.0.0/8"),
        ("WEBSOCKET_TRUSTED_PROXIES", "proxy", "allowed are networks and addresses"),
        (
            "WEBSOCKET_PROXY_PROTOCOL_OPTIONAL",
            "maybe",
            "1, true, yes or on, and 0, false, no or off",
        ),
        ("WEBSOCKET_SLOW_PEER", "drop", "allowed is close, drop-newest, drop-oldest or conflate"),
        ("WEBSOCKET_RATE_EXCESS", "drop", "allowed is pause or close"),
        ("WEBSOCKET_MESSAGE_RATE", "0", "allowed is a whole number from 1 to 4294967295, or off"),
        ("WEBSOCKET_READ_RATE", "0", ", or off"),
        ("WEBSOCKET_REQUEST_TIMEOUT", "0", "500ms, 30s, 5m, 1h"),
        ("WEBSOCKET_MAX_HTTP_CONNECTIONS", "0", ", or auto"),
        ("WEBSOCKET_HISTORY", "on", "allowed is off, memory, or sqlite: and the path of a file"),
        ("WEBSOCKET_HISTORY", "sqlite:", "a path is missing behind sqlite:"),
        #[cfg(not(feature = "sqlite"))]
        ("WEBSOCKET_HISTORY", "sqlite:/var/lib/a.db", "build it with the feature `sqlite`"),
        #[cfg(feature = "fallback")]
        ("WEBSOCKET_FALLBACK_PATH", "/ws/", "does not end with one, of letters, digits"),
        #[cfg(feature = "metrics")]
        ("WEBSOCKET_METRICS_PATH", "metrics", "-._~ between slashes, or off"),
        #[cfg(feature = "deflate")]
        ("WEBSOCKET_ENABLE_DEFLATE", "2", "1, true, yes or on, and 0, false, no or off"),
        #[cfg(feature = "deflate")]
        ("WEBSOCKET_DEFLATE_LEVEL", "10", "allowed is a whole number from 0 to 9"),
        #[cfg(feature = "deflate")]
        ("WEBSOCKET_DEFLATE_CLIENT_WINDOW", "8", "allowed is a whole number from 9 to 15"),
        #[cfg(feature = "tls")]
        ("TLS_MIN_VERSION", "1.1", "allowed is 1.2 or 1.3"),
    ] {
        let said = refused(&[(name, value)]);
        expect(&said, &[&format!("configuration: {name} is {value:?}: "), allowed]);
        assert_eq!(said.lines().count(), 1, "one is wrong: {said}");
    }
}

#[test]
fn an_empty_value_is_an_error_and_not_the_default() {
    for setting in Config::settings() {
        let said = refused(&[(setting.name(), "")]);
        assert!(said.contains("is empty") || said.contains("built without it"), "{said}");
    }
}

#[test]
fn a_value_that_is_not_utf_8_is_an_error() {
    let value = OsStr::from_bytes(b"/srv/\xff");
    let said = Config::from_pairs([("WEBSOCKET_HOST", value)]).unwrap_err().to_string();
    expect(&said, &["WEBSOCKET_HOST is \"/srv/\\xFF\": allowed is UTF-8 only"]);
    #[cfg(feature = "tls")]
    {
        let said = Config::from_pairs([("TLS_KEY_PASSWORD", value)]).unwrap_err().to_string();
        expect(&said, &["TLS_KEY_PASSWORD is set: allowed is UTF-8 only"]);
        assert!(!said.contains("srv"), "{said}");
    }
}

#[test]
fn a_long_value_is_not_repeated_as_a_whole() {
    let said = refused(&[("WEBSOCKET_PORT", &"9".repeat(10_000))]);
    assert!(said.len() < 300 && said.contains("999...\""), "{said}");
}

#[test]
fn an_unknown_name_is_an_error_with_the_name_that_was_probably_meant() {
    for (name, meant) in [
        ("WEBSOCKET_PRT", "WEBSOCKET_PORT"),
        ("WEBSOCKET_PING_INTERVALL", "WEBSOCKET_PING_INTERVAL"),
        ("WEBSOCKET_IDLE_TIME", "WEBSOCKET_IDLE_TIMEOUT"),
        ("WEBSOCKET_DEFLATE", "WEBSOCKET_ENABLE_DEFLATE"),
        ("websocket_port", "WEBSOCKET_PORT"),
        ("WEBSOCKETS_PORT", "WEBSOCKET_PORT"),
        ("TLS_CRT", "TLS_CERT"),
        ("tls_key", "TLS_KEY"),
        ("TLS_MIN_VERSON", "TLS_MIN_VERSION"),
    ] {
        let said = refused(&[(name, "1")]);
        expect(&said, &[&format!("{name:?} is no setting: did you mean {meant}?\n")]);
        // And what is allowed.
        Config::settings().for_each(|setting| expect(&said, &[setting.name()]));
    }
    let said = refused(&[("WEBSOCKET_COLOUR", "hunter2")]);
    expect(&said, &["\"WEBSOCKET_COLOUR\" is no setting\n", "the settings are WEBSOCKET_HOST, "]);
    assert!(!said.contains("hunter2"), "nobody knows what it is: {said}");
    for name in ["WEBSOCKET_SERVICE_HOST", "WEBSOCKET_PORT_9090_TCP_ADDR"] {
        expect(
            &refused(&[(name, "10.0.0.11")]),
            &[name, "Kubernetes", "enableServiceLinks: false"],
        );
    }
    let latin = OsStr::from_bytes(b"WEBSOCKET_\xff");
    let said = Config::from_pairs([(latin, "1")]).unwrap_err().to_string();
    expect(&said, &["WEBSOCKET_\u{fffd}", "is no setting"]);
}

#[test]
fn what_belongs_to_others_is_left_alone() {
    let foreign = [
        ("PATH", "/bin"),
        ("TLS_CERT_FILE", "/etc/ssl/cert.pem"),
        ("TLS_CA", "/etc/ssl/ca.pem"),
        ("TLS_REJECT_UNAUTHORIZED", "0"),
        ("SOCKET_PORT", "x"),
        ("", "x"),
    ];
    let config = Config::from_pairs(foreign).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::from_pairs([("", ""); 0]).unwrap()));
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let said = refused(&[
        ("WEBSOCKET_PORT", "x"),
        ("WEBSOCKET_PRT", "1"),
        ("WEBSOCKET_WORKERS", "0"),
        ("WEBSOCKET_READ_BURST", "1k"),
    ]);
    expect(
        &said,
        &[
            "WEBSOCKET_PORT is",
            "\"WEBSOCKET_PRT\"",
            "WEBSOCKET_WORKERS is",
            "WEBSOCKET_READ_RATE is missing",
        ],
    );
    assert_eq!(said.lines().count(), 5, "{said}");
}

#[test]
fn a_setting_that_would_do_nothing_names_the_one_that_is_missing() {
    for (name, value, missing) in [
        ("WEBSOCKET_UNIX_MODE", "0600", "WEBSOCKET_HOST"),
        ("WEBSOCKET_LIFETIME_JITTER", "1m", "WEBSOCKET_MAX_LIFETIME"),
        ("WEBSOCKET_FORWARDED_HEADER", "forwarded", "WEBSOCKET_TRUSTED_PROXIES"),
        ("WEBSOCKET_WRITE_BURST", "1k", "WEBSOCKET_WRITE_RATE"),
        ("WEBSOCKET_RATE_EXCESS", "close", "WEBSOCKET_MESSAGE_RATE or WEBSOCKET_BYTE_RATE"),
        ("WEBSOCKET_HISTORY_AGE", "1h", "WEBSOCKET_HISTORY"),
        #[cfg(feature = "fallback")]
        ("WEBSOCKET_FALLBACK_KEY", "0123456789abcdef0123456789abcdef", "WEBSOCKET_FALLBACK_PATH"),
        #[cfg(feature = "deflate")]
        ("WEBSOCKET_DEFLATE_LEVEL", "9", "WEBSOCKET_ENABLE_DEFLATE"),
        #[cfg(feature = "tls")]
        ("TLS_CERT", "chain.pem", "TLS_KEY"),
        #[cfg(feature = "tls")]
        ("TLS_KEY", "key.pem", "TLS_CERT"),
        #[cfg(feature = "tls")]
        ("TLS_CLIENT_CA", "ca.pem", "TLS_CERT"),
    ] {
        let said = refused(&[(name, value)]);
        expect(&said, &[&format!("{name} is set, and {missing} is missing")]);
    }
    // One that says no is there.
    let both = [("WEBSOCKET_READ_RATE", "off"), ("WEBSOCKET_READ_BURST", "1k")];
    assert!(Config::from_pairs(both).unwrap().rates.is_none());
}

#[cfg(feature = "tls")]
#[test]
fn a_key_that_stands_where_its_path_belongs_is_not_shown() {
    let said = refused(&[("TLS_CERT", "a.pem"), ("TLS_KEY", "-----BEGIN PRIVATE KEY-----\nMC4C")]);
    expect(&said, &["TLS_KEY is set: allowed is the path of a file, and not what is in it"]);
    assert!(!said.contains("BEGIN"), "{said}");
}

#[cfg(feature = "fallback")]
#[test]
fn a_key_that_is_too_short_is_not_shown() {
    let settings = [("WEBSOCKET_FALLBACK_PATH", "/ws"), ("WEBSOCKET_FALLBACK_KEY", "sesame")];
    let said = refused(&settings);
    expect(&said, &["WEBSOCKET_FALLBACK_KEY is set: allowed are at least 32 bytes"]);
    assert!(!said.contains("sesame"), "{said}");
}

#[cfg(feature = "sqlite")]
#[test]
fn a_database_that_cannot_be_opened_is_an_error() {
    let scratch = Scratch::new("settings");
    let path = format!("sqlite:{}", scratch.path("nowhere/a.db").display());
    let said = refused(&[("WEBSOCKET_HISTORY", &path)]);
    expect(&said, &["history: ", "nowhere/a.db"]);
    // Nor is one made while something else is wrong.
    let path = scratch.path("b.db");
    let place = format!("sqlite:{}", path.display());
    refused(&[("WEBSOCKET_HISTORY", &place), ("WEBSOCKET_PORT", "http")]);
    assert!(!path.exists());
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_in_a_build_without_it_is_an_error() {
    let said = refused(&[("TLS_CERT", "a.pem"), ("TLS_KEY", "b.pem")]);
    expect(&said, &["TLS_CERT is set", "the feature `tls`"]);
}

#[test]
fn of_two_values_the_first_counts() {
    let config = Config::from_pairs([("WEBSOCKET_WORKERS", "3"), ("WEBSOCKET_WORKERS", "x")]);
    assert_eq!(config.unwrap().workers, Some(3));
}

/// The example in a process that has this environment only.
fn process(directory: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(path("settings"));
    command.env_clear().envs(environment.iter().copied()).args(arguments);
    command.current_dir(directory).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process that serves.
#[track_caller]
fn serving(directory: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Example {
    let mut child = process(directory, environment, arguments).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let place = line.strip_prefix("listening on ").expect("it says where").trim_end().to_owned();
    Example { child, stdout, place }
}

/// A process that does not even start.
#[track_caller]
fn failing(directory: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let output = process(directory, environment, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

const PLACE: [(&str, &str); 2] = [("WEBSOCKET_HOST", "127.0.0.1"), ("WEBSOCKET_PORT", "0")];

#[test]
fn a_program_without_an_address_of_its_own_is_configured_by_the_environment() {
    let scratch = Scratch::new("settings");
    let size = ("WEBSOCKET_MAX_MESSAGE_SIZE", "4");
    let example = serving(scratch.dir(), &[&PLACE[..], &[size]].concat(), &[]);
    let mut client = example.client();
    client.echo("four");
    client.send_frame(TEXT, b"five!");
    client.expect_close(1009);
    example.signal(Signal::TERM);
    example.finish();
}

#[test]
fn without_any_setting_it_listens_on_port_9090_of_all_addresses() {
    let config = Config::from_pairs([("", ""); 0]).unwrap();
    let places: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(places, ["0.0.0.0:9090"]);
    // Unless the program itself says where.
    let config = Config::from_pairs([("WEBSOCKET_HOST", "none")]).unwrap();
    assert!(config.listen.is_empty());
    let error = coracle::Server::builder().config(config).run().unwrap_err().to_string();
    expect(&error, &["nothing to listen on"]);
}

#[test]
fn a_wrong_environment_is_said_before_anything_listens() {
    let scratch = Scratch::new("settings");
    let said = failing(scratch.dir(), &[("WEBSOCKET_PORT", "http"), ("WEBSOCKET_PRT", "1")], &[]);
    expect(
        &said,
        &[
            "error: configuration: \"WEBSOCKET_PRT\" in the environment is no setting: did you mean",
            "WEBSOCKET_PORT is \"http\" in the environment: allowed is a whole number",
        ],
    );
}

#[cfg(feature = "dotenv")]
mod dotenv {
    use super::*;

    /// What is said about a file of this text.
    #[track_caller]
    fn refused_file(text: impl AsRef<[u8]>) -> String {
        let scratch = Scratch::new("settings");
        let file = scratch.write("a.env", text);
        let error = Config::from_dotenv_file(&file).expect_err("it is wrong").to_string();
        error.replace(file.to_str().unwrap(), "a.env")
    }

    #[track_caller]
    fn read(text: impl AsRef<[u8]>) -> Config {
        let scratch = Scratch::new("settings");
        Config::from_dotenv_file(scratch.write("a.env", text)).expect("it is right")
    }

    #[test]
    fn the_file_says_what_the_environment_does_not() {
        let scratch = Scratch::new("settings");
        scratch.write(
            ".env",
            "WEBSOCKET_HOST=127.0.0.1\nWEBSOCKET_PORT=1\nWEBSOCKET_MAX_MESSAGE_SIZE=4\n",
        );
        let example = serving(scratch.dir(), &[("WEBSOCKET_PORT", "0")], &[]);
        assert_ne!(example.address().port(), 1, "the environment comes first");
        let mut client = example.client();
        client.echo("four");
        client.send_frame(TEXT, b"five!");
        client.expect_close(1009);
        example.signal(Signal::TERM);
        example.finish();
    }

    #[test]
    fn another_file_is_read_if_it_is_named() {
        let scratch = Scratch::new("settings");
        scratch.write(".env", "WEBSOCKET_PORT=wrong\n");
        scratch.write("chat.env", "WEBSOCKET_HOST=127.0.0.1\nWEBSOCKET_PORT=0\n");
        let example = serving(scratch.dir(), &[], &["chat.env"]);
        example.client().goodbye();
        example.signal(Signal::TERM);
        example.finish();
    }

    #[test]
    fn a_missing_file_is_an_error_only_if_it_was_named() {
        let scratch = Scratch::new("settings");
        let example = serving(scratch.dir(), &PLACE, &[]);
        example.client().goodbye();
        example.signal(Signal::TERM);
        example.finish();
        let said = failing(scratch.dir(), &PLACE, &["chat.env"]);
        expect(&said, &["cannot read chat.env: No such file"]);
        // There, but no file.
        std::fs::create_dir(scratch.path(".env")).unwrap();
        expect(&failing(scratch.dir(), &PLACE, &[]), &["cannot read .env: Is a directory"]);
    }

    #[test]
    fn comments_quotes_and_references_are_understood() {
        let config = read(
            "\u{feff}# a comment, don't read it\r\n\r\nexport WEBSOCKET_WORKERS=3 # three\r\n\
             N=12\r\nWEBSOCKET_BACKLOG=\"${N}8\"\r\nMULTI=\"two\nlines # it isn't\"\n\
             WEBSOCKET_HOST='unix:/run/$N' \nWEBSOCKET_MAX_MESSAGE_SIZE = 1k ",
        );
        assert_eq!((config.workers, config.backlog), (Some(3), 128));
        assert_eq!(config.listen[0].to_string(), "unix:/run/$N");
        assert_eq!(config.limits.message_bytes, 1024);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let said = refused_file(
            "# settings\n\nWEBSOCKET_PORT=http\nOTHER='a\nb'\n\n# more\nWEBSOCKET_PRT=1\nTLS_CRT=x\n",
        );
        expect(
            &said,
            &[
                "WEBSOCKET_PORT is \"http\" at a.env:3: allowed is a whole number",
                "\"WEBSOCKET_PRT\" at a.env:8 is no setting: did you mean WEBSOCKET_PORT?",
                "\"TLS_CRT\" at a.env:9 is no setting",
            ],
        );
        let said = refused_file("WEBSOCKET_PORT=1\nOTHER=1\nOTHER=2\nWEBSOCKET_PORT=2\n");
        expect(&said, &["WEBSOCKET_PORT is set at a.env:1 and again at a.env:4"]);
        expect(&refused_file("WEBSOCKET_PORT=\n"), &["WEBSOCKET_PORT is empty at a.env:1"]);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_and_not_repeated() {
        for (text, line) in [
            ("A=1\nTLS_KEY_PASSWORD=my secret", 2),
            ("TLS_KEY_PASSWORD='secret\nA=1\n", 1),
            ("A=1\n\n!TLS_KEY_PASSWORD=secret", 3),
            ("TLS_KEY_PASSWORD secret", 1),
        ] {
            let said = refused_file(text);
            expect(&said, &[&format!("a.env:{line} cannot be read"), "NAME='value'"]);
            assert!(!said.contains("secret"), "{said}");
        }
    }

    // The parser took the quote in "don't" for the beginning of one, and everything up to the next quote for a
    // part of the comment: the port was 9090 again, without a word.
    #[test]
    fn a_quote_in_a_comment_swallows_no_setting() {
        for first in ["WEBSOCKET_WORKERS=1", "A=\"1\\n2\\n3\""] {
            let text = format!("{first}  # don't\nWEBSOCKET_PORT=1\nA=1  # isn't\nB=2\n");
            expect(&refused_file(text), &["a.env:1 cannot be read", "no quotes in a comment"]);
        }
    }

    #[test]
    fn what_is_no_file_of_settings_is_not_read_to_its_end() {
        expect(&refused_file(b"A=1\nB=\xff\n"), &["cannot read a.env: line 2 is not UTF-8"]);
        expect(
            &refused_file("A=1\n".repeat(300_000)),
            &["cannot read a.env", "more than a mebibyte"],
        );
        let said = Config::from_dotenv_file("/dev/zero").unwrap_err().to_string();
        expect(&said, &["cannot read /dev/zero", "more than a mebibyte"]);
        // A long one is.
        read("A=1\n".repeat(200_000));
    }
}
