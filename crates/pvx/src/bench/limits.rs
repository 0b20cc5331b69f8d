//! How much may be measured. The bounds are in the help of `pvx bench`, and docs/pvx.md says why.

use std::{ops::RangeInclusive, time::Duration};

use clap::builder::RangedU64ValueParser;

/// Each is a process and a thread of pvx.
pub(super) const GUESTS: RangeInclusive<u64> = 1..=1024;
/// Each is a process.
pub(super) const SPACES: RangeInclusive<u64> = 1..=10_000;
/// Each takes some milliseconds.
pub(super) const ATTACHMENTS: RangeInclusive<u64> = 1..=1_000_000;
/// With fewer a turn is shorter than what a scheduler gives to others, and the process may have done nothing in it.
pub(super) const CALLS: RangeInclusive<u64> = 1_000_000..=1_000_000_000;
/// Of what is shorter little but preparations would be left.
const SECONDS: RangeInclusive<f64> = 0.1..=86_400.0;

/// Reads a number within `bounds`.
pub(super) fn count(bounds: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(bounds)
}

/// Reads a time.
pub(super) fn seconds(word: &str) -> Result<Duration, String> {
    match word.parse() {
        Ok(seconds) if SECONDS.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("use {} to {} seconds", SECONDS.start(), SECONDS.end())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_time_to_measure_for_is_refused_with_the_bounds() {
        assert_eq!(seconds("0.3"), Ok(Duration::from_millis(300)));
        for word in ["0", "-1", "1e7", "inf", "nan", "soon", ""] {
            assert_eq!(seconds(word), Err("use 0.1 to 86400 seconds".to_owned()), "{word}");
        }
    }
}
