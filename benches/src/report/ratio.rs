//! Medians, and ratios that noise cancels out of.
//!
//! A busy machine slows everybody who runs at that time. So targets are compared within a round,
//! where they ran one after another, and the ratio is the median of the rounds' ratios; the ratio of
//! the medians would compare one target's good moment with another's bad one.

use serde::Serialize;

use crate::measure::{RowResult, TargetResult};
use crate::plan::Sample;
use crate::servers::Role;

/// One target's figures in one row.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compared {
    pub(crate) name: &'static str,
    #[serde(skip)]
    pub(crate) role: Role,
    /// CPU microseconds, or bytes.
    pub(crate) median: Option<f64>,
    pub(crate) min: Option<f64>,
    pub(crate) to_bare: Option<f64>,
    /// In a row with one publisher: to the bare loop that sends what it has read at once.
    pub(crate) to_coalesced: Option<f64>,
    /// In a row with TLS: to coracle without it.
    pub(crate) to_no_tls: Option<f64>,
    pub(crate) to_best_peer: Option<f64>,
}

/// Compares the targets of one row.
pub(crate) fn compare(result: &RowResult) -> Vec<Compared> {
    let the = |role| result.targets.iter().find(|it| it.target.role == role);
    let (bare, coalesced) = (the(Role::Bare), the(Role::Coalesced));
    let no_tls = the(Role::WithoutTls);
    let best_peer = result
        .targets
        .iter()
        .filter(|it| it.target.role == Role::Peer)
        .filter_map(|it| Some((it, median(costs(it))?)))
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(it, _)| it);
    let compared = result.targets.iter().map(|it| Compared {
        name: it.target.name,
        role: it.target.role,
        median: median(costs(it)),
        min: costs(it).min_by(f64::total_cmp),
        to_bare: bare.and_then(|to| ratio(it, to)),
        to_coalesced: coalesced.and_then(|to| ratio(it, to)),
        to_no_tls: no_tls.and_then(|to| ratio(it, to)),
        // Peers with TLS are no match for coracle without.
        to_best_peer: best_peer
            .filter(|_| it.target.role != Role::WithoutTls)
            .and_then(|to| ratio(it, to)),
    });
    compared.collect()
}

/// The median of one of a target's figures.
pub(crate) fn median_of(
    target: &TargetResult,
    figure: impl Fn(&Sample) -> Option<f64>,
) -> Option<f64> {
    median(target.rounds.iter().flatten().filter_map(figure))
}

fn costs(target: &TargetResult) -> impl Iterator<Item = f64> {
    target.rounds.iter().flatten().map(Sample::cost)
}

/// The median over the rounds that both were measured in.
fn ratio(of: &TargetResult, to: &TargetResult) -> Option<f64> {
    let rounds = of.rounds.iter().zip(&to.rounds);
    median(rounds.filter_map(|(of, to)| Some(of.as_ref()?.cost() / to.as_ref()?.cost())))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|it| it.is_finite()).collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median([1.0, f64::NAN].into_iter()), Some(1.0));
    }
}
