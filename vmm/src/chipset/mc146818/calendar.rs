//! Dates of the clock: registers in BCD or binary, 12 or 24 hours, and the days since 1970 (proleptic Gregorian).

use super::index::CENTURY;

const B_BINARY: u8 = 4;
const B_24H: u8 = 2;
const DAY: u64 = 86_400;

/// A date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    second: u64,
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    year: u64,
    /// 1 is Sunday.
    weekday: u64,
}

fn encode(value: u64, b: u8) -> u8 {
    (if b & B_BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }) as u8
}

fn decode(value: u8, b: u8) -> u64 {
    u64::from(if b & B_BINARY != 0 { value } else { (value >> 4).wrapping_mul(10).wrapping_add(value & 15) })
}

fn encode_hour(hour: u64, b: u8) -> u8 {
    if b & B_24H != 0 {
        return encode(hour, b);
    }
    encode((hour + 11) % 12 + 1, b) | if hour >= 12 { 0x80 } else { 0 }
}

fn decode_hour(value: u8, b: u8) -> u64 {
    if b & B_24H != 0 {
        return decode(value, b);
    }
    decode(value & 0x7f, b) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
}

impl Fields {
    /// The date of `seconds` since 1970. Counts in 400-year eras that start on 1 March, so that leap days come last.
    pub fn from_utc(seconds: u64) -> Self {
        let (days, time) = (seconds / DAY, seconds % DAY);
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            second: time % 60,
            minute: time / 60 % 60,
            hour: time / 3600,
            day: of_year - (153 * march_month + 2) / 5 + 1,
            month,
            year: era * 400 + year_of_era + (month <= 2) as u64,
            weekday: (days + 4) % 7 + 1,
        }
    }

    /// Seconds since 1970; dates before are 1970. Fields out of range carry over.
    pub fn to_utc(self) -> u64 {
        let month = self.month.clamp(1, 12);
        let year = self.year - (month <= 2) as u64;
        let march_month = (month + 9) % 12;
        let of_year = (153 * march_month + 2) / 5 + self.day.max(1) - 1;
        let of_era = (year % 400) * 365 + year % 400 / 4 - year % 400 / 100 + of_year;
        let days = (year / 400 * 146_097 + of_era).saturating_sub(719_468);
        days * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// Clock register `index` with the formats of register B.
    pub fn register(&self, index: u8, b: u8) -> u8 {
        match index {
            0 => encode(self.second, b),
            2 => encode(self.minute, b),
            4 => encode_hour(self.hour, b),
            6 => encode(self.weekday, b),
            7 => encode(self.day, b),
            8 => encode(self.month, b),
            9 => encode(self.year % 100, b),
            // The century is BCD in either format.
            CENTURY => encode(self.year / 100 % 100, 0),
            _ => 0,
        }
    }

    /// The date that the registers in `ram` hold. A year of zero cannot come out: the century counts from 1900 at least.
    pub fn from_registers(ram: &[u8; 128], b: u8) -> Self {
        let century = decode(ram[usize::from(CENTURY)], 0).clamp(19, 99);
        Self {
            second: decode(ram[0], b),
            minute: decode(ram[2], b),
            hour: decode_hour(ram[4], b),
            day: decode(ram[7], b),
            month: decode(ram[8], b),
            year: century * 100 + decode(ram[9], b) % 100,
            weekday: decode(ram[6], b),
        }
    }
}

/// The first second after `after` that matches `alarm` (hour, minute, second registers; C0h and above match any).
/// Bounded: registers that no time matches are found first.
pub fn next_alarm(after: u64, alarm: [u8; 3], b: u8) -> Option<u64> {
    let matches = |register: u8, value: u64, hour: bool| {
        register >= 0xc0 || if hour { decode_hour(register, b) == value } else { decode(register, b) == value }
    };
    let never = |register| !(0..60).any(|v| matches(register, v, false));
    if never(alarm[1]) || never(alarm[2]) {
        return None;
    }
    let first = (after + 1) / 3600;
    for hour in (first..=first + 24).filter(|h| matches(alarm[0], h % 24, true)) {
        for minute in (0..60).filter(|m| matches(alarm[1], *m, false)) {
            let start = hour * 3600 + minute * 60;
            if start + 59 <= after {
                continue;
            }
            if let Some(second) = (0..60).find(|s| start + s > after && matches(alarm[2], *s, false)) {
                return Some(start + second);
            }
        }
    }
    None
}
