//! Medians, ratios and the table.

use serde::Serialize;

use super::Group;

/// One work's times, in nanoseconds, one for each round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// The work's name.
    pub name: String,
    /// On the host.
    pub native: Vec<u64>,
    /// In Bulkhead's guest.
    pub bulkhead: Vec<u64>,
    /// In QEMU's guest.
    pub qemu: Vec<u64>,
    #[serde(skip)]
    group: Option<Group>,
}

impl Row {
    /// A row without times.
    pub fn new(name: &str, group: Option<Group>) -> Self {
        Self { name: name.to_owned(), group, ..Self::default() }
    }

    /// Bulkhead's median over the host's: how much slower than native.
    pub fn slowdown(&self) -> Option<f64> {
        ratio(&self.bulkhead, &self.native)
    }

    /// QEMU's median over Bulkhead's: how much faster than QEMU.
    pub fn speedup(&self) -> Option<f64> {
        ratio(&self.qemu, &self.bulkhead)
    }
}

/// The ratio of two medians.
pub fn ratio(over: &[u64], under: &[u64]) -> Option<f64> {
    Some(median(over)? as f64 / median(under)?.max(1) as f64)
}

/// The middle time, or the lower one of the two in the middle.
pub fn median(times: &[u64]) -> Option<u64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied()
}

/// The geometric mean; none of nothing.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logs: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logs / values.len() as f64).exp())
}

/// The table as text.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<14} {:>12} {:>12} {:>12}  {:>8} {:>8}  goal\n",
        "work", "native", "bulkhead", "qemu", "x native", "x qemu"
    );
    for row in rows {
        let time = |times: &[u64]| median(times).map_or_else(|| "-".into(), human);
        let times = [time(&row.native), time(&row.bulkhead), time(&row.qemu)];
        let ratios =
            [row.slowdown(), row.speedup()].map(|ratio| ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}")));
        let goal = row.group.map_or("3 x faster than qemu", Group::goal);
        let [native, bulkhead, qemu] = times;
        let [slowdown, speedup] = ratios;
        text +=
            &format!("{:<14} {native:>12} {bulkhead:>12} {qemu:>12}  {slowdown:>8} {speedup:>8}  {goal}\n", row.name);
    }
    text + &means(rows)
}

/// The geometric means over user code, with and without works that are much faster than native.
fn means(rows: &[Row]) -> String {
    let user = || rows.iter().filter(|row| row.group == Some(Group::User));
    let slowdowns: Vec<f64> = user().filter_map(Row::slowdown).collect();
    let usual: Vec<f64> = slowdowns.iter().copied().filter(|ratio| *ratio >= 0.8).collect();
    let speedups: Vec<f64> = user().filter_map(Row::speedup).collect();
    let show = |mean: Option<f64>| mean.map_or_else(|| "-".into(), |mean| format!("{mean:.3}"));
    format!(
        "user code, geometric mean: {} x native ({} without those below 0.8), {} x faster than qemu\n",
        show(geometric_mean(&slowdowns)),
        show(geometric_mean(&usual)),
        show(geometric_mean(&speedups)),
    )
}

/// Nanoseconds with a unit that fits.
pub fn human(nanoseconds: u64) -> String {
    match nanoseconds {
        0..10_000 => format!("{nanoseconds} ns"),
        10_000..10_000_000 => format!("{:.1} us", nanoseconds as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.2} s", nanoseconds as f64 / 1e9),
    }
}

/// Bytes in MiB.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_of_medians() {
        let times = |times: [u64; 3]| times.to_vec();
        let row = Row {
            native: times([10, 30, 20]),
            bulkhead: times([22, 21, 90]),
            qemu: times([110, 120, 100]),
            ..Row::new("x", Some(Group::User))
        };
        assert_eq!((row.slowdown(), row.speedup()), (Some(1.1), Some(5.0)));
        assert_eq!(Row::new("y", None).slowdown(), None);
        assert_eq!(geometric_mean(&[2.0, 8.0]).map(|mean| mean.round()), Some(4.0));
    }
}
