//! What a server says of itself, read by somebody who forgives nothing.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::collections::{BTreeMap, BTreeSet};

use coracle::ServerHandle;

/// All series of one text.
#[derive(Debug)]
pub struct Scrape {
    /// Their values by name and labels, as they were written.
    pub series: BTreeMap<String, f64>,
    /// Types by family.
    pub types: BTreeMap<String, String>,
    /// Names of labels by family, without `le`.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

pub fn scrape(handle: &ServerHandle) -> Scrape {
    Scrape::openmetrics(&handle.metrics().encode())
}

impl Scrape {
    /// OpenMetrics 1.0, as far as this crate writes it.
    #[track_caller]
    pub fn openmetrics(text: &str) -> Self {
        let rest = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        assert!(!rest.contains("# EOF"), "{text}");
        Self::parse(rest, |kind| match kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_sum", "_count", "_bucket"],
            _ => panic!("the type {kind}"),
        })
    }

    /// Prometheus' text format 0.0.4.
    #[track_caller]
    pub fn classic(text: &str) -> Self {
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
        Self::parse(text, |kind| match kind {
            "counter" | "gauge" => &[""],
            "histogram" => &["_sum", "_count", "_bucket"],
            _ => panic!("the type {kind}"),
        })
    }

    #[track_caller]
    fn parse(text: &str, suffixes: impl Fn(&str) -> &'static [&'static str]) -> Self {
        let (mut series, mut types) = (BTreeMap::new(), BTreeMap::new());
        let mut labels = BTreeMap::<String, BTreeSet<String>>::new();
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        assert!(text.ends_with('\n'), "the last line has an end");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').expect("a name and words");
                assert!(!words.is_empty(), "{line}");
                assert!(helped.insert(name.to_owned()), "helped twice: {line}");
                family = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert_eq!(name, family, "the help of a family comes before its type");
                let before = types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "one type: {line}");
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                let (name, unit) = rest.split_once(' ').expect("a name and a unit");
                assert_eq!(name, family, "{line}");
                assert!(name.ends_with(&format!("_{unit}")), "{line}");
            } else {
                let (name, value) = line.rsplit_once(' ').expect("a series and a value");
                let bare = name.split('{').next().unwrap();
                assert!(
                    bare.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
                    "{line}"
                );
                let kind = types.get(&family).expect("a type");
                let suffix = bare.strip_prefix(&family).unwrap_or_else(|| panic!("stray: {line}"));
                assert!(suffixes(kind).contains(&suffix), "{kind}: {line}");
                let value: f64 = value.parse().expect("a number");
                assert!(kind == "gauge" || value >= 0.0, "{line}");
                labels.entry(family.clone()).or_default().extend(label_names(name));
                assert_eq!(series.insert(name.to_owned(), value), None, "twice: {line}");
            }
        }
        assert!(helped.iter().eq(types.keys()), "every family has a help and a type");
        let scrape = Self { series, types, labels };
        for name in scrape.types.iter().filter(|it| it.1 == "histogram").map(|it| it.0) {
            scrape.check_histogram(name);
        }
        scrape
    }

    /// Buckets grow, and the last of them has everything.
    #[track_caller]
    fn check_histogram(&self, name: &str) {
        for (count, value) in self
            .series
            .iter()
            .filter(|it| it.0.split('{').next().unwrap().strip_prefix(name) == Some("_count"))
        {
            let labels = count.split_once('{').map_or("", |it| it.1.trim_end_matches('}'));
            let bucket = format!("{name}_bucket{{");
            let mut buckets: Vec<(f64, f64)> = self
                .series
                .iter()
                .filter(|it| it.0.starts_with(&bucket) && it.0.contains(labels))
                .map(|it| (it.0.split("le=\"").nth(1).unwrap().split('"').next().unwrap(), *it.1))
                .map(|(le, count)| (le.parse().unwrap(), count))
                .collect();
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            assert!(buckets.len() > 3, "{name}");
            assert!(
                buckets.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1),
                "{buckets:?}"
            );
            assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, *value), "{name}");
        }
    }

    /// The value of a series; that of one that is not there is zero.
    pub fn get(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or_default()
    }

    #[track_caller]
    pub fn expect(&self, expected: &[(&str, u32)]) {
        for (series, value) in expected {
            let is = self.series.get(*series).unwrap_or_else(|| panic!("no {series} in {self:#?}"));
            assert_eq!(*is, f64::from(*value), "{series}");
        }
    }

    /// The sum of all series of a name.
    pub fn sum(&self, name: &str) -> f64 {
        let of = |series: &str| series.split('{').next() == Some(name);
        self.series.iter().filter(|it| of(it.0)).map(|it| it.1).sum()
    }
}

/// The names of the labels of a series, of which each value is quoted.
#[track_caller]
fn label_names(series: &str) -> Vec<String> {
    let Some((_, labels)) = series.split_once('{') else {
        return Vec::new();
    };
    let labels = labels.strip_suffix('}').expect("braces");
    // No value of ours has a quote or a comma between quotes.
    let names = labels.split("\",").map(|label| {
        let (name, value) = label.split_once("=\"").expect("a name and a quoted value");
        assert!(!name.is_empty() && !value.is_empty(), "{series}");
        name.to_owned()
    });
    let names: Vec<_> = names.filter(|name| name != "le").collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{series}");
    names
}
