//! Times in conditions, in UTC: the proleptic Gregorian calendar (RFC 3339), and durations like `90s` or `1h30m`.

use super::ConditionFault;

const DAY: i64 = 86_400;

/// Parts of a time that a condition may ask for, by CEL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Year,
    /// From 0.
    Month,
    /// From 0.
    DayOfMonth,
    /// From 1.
    Date,
    /// From 0, a Sunday.
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
}

impl Part {
    pub(super) const ALL: [(&'static str, Self); 8] = [
        ("getFullYear", Self::Year),
        ("getMonth", Self::Month),
        ("getDayOfMonth", Self::DayOfMonth),
        ("getDate", Self::Date),
        ("getDayOfWeek", Self::DayOfWeek),
        ("getHours", Self::Hours),
        ("getMinutes", Self::Minutes),
        ("getSeconds", Self::Seconds),
    ];

    /// Of an instant, in seconds since the Unix epoch.
    pub(super) fn of_timestamp(self, seconds: i64) -> i64 {
        let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = civil(days);
        match self {
            Self::Year => year,
            Self::Month => month - 1,
            Self::DayOfMonth => day - 1,
            Self::Date => day,
            Self::DayOfWeek => (days + 4).rem_euclid(7), // the epoch was a Thursday
            Self::Hours => second / 3_600,
            Self::Minutes => second / 60 % 60,
            Self::Seconds => second % 60,
        }
    }

    /// Of a duration: the whole of it in that unit, as CEL has it.
    pub(super) fn of_duration(self, seconds: i64) -> Result<i64, ConditionFault> {
        match self {
            Self::Hours => Ok(seconds / 3_600),
            Self::Minutes => Ok(seconds / 60),
            Self::Seconds => Ok(seconds),
            _ => Err(ConditionFault::Type),
        }
    }
}

/// Year, month and day of a day counted from the epoch (Hinnant, «chrono-compatible low-level date algorithms»).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The instant of an RFC 3339 text, in seconds; fractions are cut off.
pub(super) fn parse_timestamp(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| {
        text.get(range)?.parse::<i64>().ok().filter(|_| text.is_ascii()).filter(|number| *number >= 0)
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|(at, expected)| text.as_bytes().get(*at) == Some(expected)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let zone = text.get(19..)?;
    let zone = match zone.strip_prefix('.') {
        None => zone,
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
    };
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let digits = std::str::from_utf8(&[*h1, *h2, *m1, *m2]).ok()?.parse::<u16>().ok()?;
            let seconds = i64::from(digits / 100 * 60 + digits % 100) * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let in_range =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    let days = days_from_civil(year, month, day);
    // The 31st of a shorter month would be another day.
    (in_range && civil(days) == (year, month, day))
        .then(|| days * DAY + hour * 3_600 + minute * 60 + second - offset)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// A duration of whole hours, minutes and seconds.
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let mut total = 0_i64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.as_bytes().first()? {
            b'h' => 3_600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        rest = &tail[1..];
    }
    Some(if negative { -total } else { total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_and_taken_apart() {
        let at = parse_timestamp("2026-02-28T23:59:58Z").unwrap();
        assert_eq!(at, 1_772_323_198);
        let parts = Part::ALL.map(|(_, part)| part.of_timestamp(at));
        assert_eq!(parts, [2026, 1, 27, 28, 6, 23, 59, 58]);
        assert_eq!(parse_timestamp("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(parse_timestamp("2000-02-29T00:00:00.5Z"), Some(951_782_400));
        for text in [
            "",
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01 00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "２０２６-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
        for days in (-800_000..800_000).step_by(97) {
            let (year, month, day) = civil(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("1h30m"), Some(5_400));
        assert_eq!(parse_duration("-90s"), Some(-90));
        for text in ["", "-", "1", "1x", "h", "99999999999999999999h", "1.5h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
