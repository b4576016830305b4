//! Which name somebody may have meant.

/// How many letters have to be put in, taken out or replaced (Levenshtein's distance).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (place, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *place;
            left = (corner + usize::from(x != y)).min(above + 1).min(left + 1);
            corner = above;
            *place = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Whether one letter makes the difference, or only their case.
pub(super) fn is_near(a: &str, b: &str) -> bool {
    a.len().abs_diff(b.len()) <= 1 && distance(a, b) <= 1
}

/// The name that somebody probably meant: at least two thirds of it are right, or it only lacks its first
/// word.
pub(super) fn nearest<'a>(
    name: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let distances = names.clone().map(|it| (distance(it, name), it));
    let near = distances.min_by_key(|(distance, _)| *distance);
    let near = near.filter(|(distance, it)| *distance <= it.len() / 3).map(|(_, it)| it);
    near.or_else(|| names.clone().find(|it| it.split_once('_').is_some_and(|(_, it)| it == name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_letters() {
        for (a, b, letters) in [
            ("", "", 0),
            ("", "abc", 3),
            ("port", "port", 0),
            ("port", "prt", 1),
            ("port", "ports", 1),
            ("port", "part", 1),
            ("port", "prot", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), letters, "{a} {b}");
            assert_eq!(distance(b, a), letters, "{b} {a}");
        }
    }

    #[test]
    fn a_name_is_meant_if_most_of_it_is_right() {
        let names = || ["PORT", "IDLE_TIMEOUT", "PING_INTERVAL", "ENABLE_DEFLATE"].into_iter();
        assert_eq!(nearest("IDLE_TIME", names()), Some("IDLE_TIMEOUT"));
        assert_eq!(nearest("PRT", names()), Some("PORT"));
        assert_eq!(nearest("DEFLATE", names()), Some("ENABLE_DEFLATE"));
        assert_eq!(nearest("COLOUR", names()), None);
        assert!(is_near("PORT", "PORTS") && !is_near("PORT", "PROT"));
    }
}
