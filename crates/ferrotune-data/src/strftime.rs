//! `strftime` in UTC, for templates that write today's date.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats a time with C's directives in the C locale; `Err` holds a directive that is not known.
pub(crate) fn format_utc(time: SystemTime, format: &str) -> Result<String, String> {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let year_day = days - days_of(year, 1, 1) + 1;
    let hour12 = (hour + 11) % 12 + 1;
    let month_name = MONTHS[month as usize - 1];

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // `%-d`: glibc's way to leave out the padding.
        let (bare, directive) = match chars.next() {
            Some('-') => (true, chars.next()),
            other => (false, other),
        };
        let mut number = |value: i64, width: usize, pad: char| match (bare, pad) {
            (true, _) => out.push_str(&value.to_string()),
            (false, ' ') => out.push_str(&format!("{value:>width$}")),
            (false, _) => out.push_str(&format!("{value:0>width$}")),
        };
        match directive {
            Some('Y') => number(year, 1, '0'),
            Some('y') => number(year.rem_euclid(100), 2, '0'),
            Some('m') => number(month, 2, '0'),
            Some('d') => number(day, 2, '0'),
            Some('e') => number(day, 2, ' '),
            Some('H') => number(hour, 2, '0'),
            Some('I') => number(hour12, 2, '0'),
            Some('M') => number(minute, 2, '0'),
            Some('S') => number(second, 2, '0'),
            Some('j') => number(year_day, 3, '0'),
            Some('w') => number(weekday as i64, 1, '0'),
            Some('u') => number(if weekday == 0 { 7 } else { weekday as i64 }, 1, '0'),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(DAYS[weekday]),
            Some('a') => out.push_str(&DAYS[weekday][..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T' | 'X') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('R') => out.push_str(&format!("{hour:02}:{minute:02}")),
            Some('D' | 'x') => out.push_str(&format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100))),
            // Python's `datetime.now()` carries no zone: both are empty.
            Some('z' | 'Z') => {}
            Some('%') => out.push('%'),
            Some(other) => return Err(format!("%{other}")),
            None => out.push('%'),
        }
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // 400 years always have 146,097 days; the search within them needs no formula to trust.
    let cycle = days.div_euclid(146_097);
    let mut rest = days.rem_euclid(146_097);
    let mut year = 1970 + 400 * cycle;
    while rest >= year_days(year) {
        rest -= year_days(year);
        year += 1;
    }
    let mut month = 1;
    while rest >= month_days(year, month) {
        rest -= month_days(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let cycle = (year - 1970).div_euclid(400);
    let years: i64 = (1970 + 400 * cycle..year).map(year_days).sum();
    let months: i64 = (1..month).map(|month| month_days(year, month)).sum();
    146_097 * cycle + years + months + day - 1
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn year_days(year: i64) -> i64 {
    if leap(year) { 366 } else { 365 }
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn equals_python_strftime() {
        // datetime.fromtimestamp(s, timezone.utc).strftime(...)
        for (seconds, text) in [
            (0, "Thu Thursday 01 1 Jan January 1970 70 00:00:00 AM 001"),
            (951_782_399, "Mon Monday 28 28 Feb February 2000 00 23:59:59 PM 059"),
            (951_782_400, "Tue Tuesday 29 29 Feb February 2000 00 00:00:00 AM 060"),
            (1_735_689_599, "Tue Tuesday 31 31 Dec December 2024 24 23:59:59 PM 366"),
            (4_107_542_400, "Mon Monday 01 1 Mar March 2100 00 00:00:00 AM 060"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(format_utc(time, "%a %A %d %-d %b %B %Y %y %H:%M:%S %p %j").unwrap(), text);
        }
    }

    #[test]
    fn unknown_directives_are_named() {
        assert_eq!(format_utc(UNIX_EPOCH, "%Q"), Err("%Q".to_string()));
        assert_eq!(format_utc(UNIX_EPOCH, "100%").unwrap(), "100%");
    }
}
