//! That the table is what it says.

use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<Config> {
    Config::from_pairs(pairs.iter().copied())
}

#[test]
fn no_setting_is_there_twice_or_needs_one_that_is_not_there() {
    let names: Vec<_> = table::settings().map(Setting::name).collect();
    for (at, name) in names.iter().enumerate() {
        assert!(!names[..at].contains(name), "{name} twice");
        // Or every name would be near to another, and a wrong one could not be told from a right one.
        assert!(!names[..at].iter().any(|other| is_near(other, name)), "{name} is near to another");
    }
    for setting in table::settings() {
        for needed in setting.needs {
            assert!(names.contains(needed), "{} needs {needed}", setting.name);
        }
    }
}

#[test]
fn every_default_is_what_there_is_without_the_setting() {
    let initial = Draft::default();
    for setting in table::settings().filter(|it| it.feature.is_none() && !it.default.is_empty()) {
        let mut draft = Draft::default();
        (setting.set)(&mut draft, setting.default).expect(setting.name);
        assert_eq!(format!("{draft:?}"), format!("{initial:?}"), "{}", setting.name);
    }
    let nothing = read(&[]).unwrap();
    let expected = Config {
        listen: vec![crate::config::Listen::Tcp { host: "0.0.0.0".into(), port: 9090 }],
        ..Config::default()
    };
    assert_eq!(format!("{nothing:?}"), format!("{expected:?}"));
}

#[test]
fn the_documentation_has_every_setting_with_its_default() {
    let documented: Vec<_> = include_str!("../../docs/settings.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, rest)| {
            let default = rest.split('|').nth(1).expect("a second column").trim();
            (name, default.trim_matches('`'))
        })
        .collect();
    let table: Vec<_> = table::settings().map(|it| (it.name, it.default)).collect();
    assert_eq!(documented, table);
}
