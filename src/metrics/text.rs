//! The older of the two text formats, and who gets which.
//!
//! OpenMetrics names the family of a counter without its `_total`, and knows types and lines that Prometheus'
//! format 0.0.4 does not: whoever reads only that refuses the text, or takes counters for something without
//! a type.

use std::fmt::Write;

/// Whether a client prefers OpenMetrics: it must name it, as a version that we write, and not like the other
/// format better (RFC 9110 section 12.5.1).
pub(super) fn wants_openmetrics(accept: &str) -> bool {
    let (mut openmetrics, mut other) = (0.0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let Some(kind) = parts.next() else {
            continue;
        };
        let (mut quality, mut version) = (1.0_f32, None);
        for part in parts {
            match part.split_once('=') {
                Some((name, value)) if name.eq_ignore_ascii_case("q") => {
                    // What is no number is no wish.
                    quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
                }
                Some((name, value)) if name.eq_ignore_ascii_case("version") => {
                    version = Some(value.trim_matches('"'));
                }
                _ => {}
            }
        }
        if kind.eq_ignore_ascii_case("application/openmetrics-text") {
            if version.is_none_or(|version| version == "1.0.0") {
                openmetrics = quality.max(openmetrics);
            }
        } else if kind.eq_ignore_ascii_case("text/plain") {
            other = quality.max(other);
        }
    }
    openmetrics > 0.0 && openmetrics >= other
}

/// The same numbers in Prometheus' text format 0.0.4.
pub(super) fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // Comes before the type, and only the type says what the family is called.
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "unknown" | "gaugehistogram" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {words}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(without_exemplar(line));
            text.push('\n');
        }
    }
    text
}

/// A sample without what stands behind ` # `, which there may be in a label as well.
fn without_exemplar(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return line.get(..at).unwrap_or(line).trim_end(),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.75,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.25,*/*;q=0.1";
        for accept in [
            prometheus,
            "application/openmetrics-text",
            "text/plain, Application/OpenMetrics-Text; Version=\"1.0.0\"",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ] {
            assert!(wants_openmetrics(accept), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "application/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.3,text/plain;q=0.5",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text;q=-1,;;=,",
        ] {
            assert!(!wants_openmetrics(accept), "{accept}");
        }
    }

    #[test]
    fn counters_are_called_by_their_whole_name_and_unknown_lines_are_left_out() {
        let openmetrics = "# HELP a_bytes Bytes \\n of it.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
             a_bytes_total{x=\"1\"} 5 # {id=\"7\"} 3\n# HELP b Info.\n# TYPE b info\nb_info{v=\"# \\\" #\"} 1\n\
             # TYPE c unknown\nc 1\n# HELP d Histogram.\n# TYPE d histogram\nd_bucket{le=\"+Inf\"} 1\n# EOF\n";
        assert_eq!(
            classic(openmetrics),
            "# HELP a_bytes_total Bytes \\n of it.\n# TYPE a_bytes_total counter\n\
             a_bytes_total{x=\"1\"} 5\n# HELP b_info Info.\n# TYPE b_info gauge\n\
             b_info{v=\"# \\\" #\"} 1\n# TYPE c untyped\nc 1\n# HELP d Histogram.\n# TYPE d histogram\n\
             d_bucket{le=\"+Inf\"} 1\n"
        );
    }
}
