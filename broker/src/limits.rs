//! How much of the host a machine may use: what `--limits` and `[limits]` say, and control groups enforce.

use crate::cli::byte_count;

/// The period of cpu.max in microseconds, the kernel's own default.
const PERIOD: u64 = 100_000;
/// Most processors that a limit may speak of.
const MAX_CPUS: f64 = 4096.0;

/// Limits of all processes of a machine together, but for the last. Each may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, guest RAM among them.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processor time in microseconds of each [`PERIOD`].
    pub cpu: Option<u64>,
    /// Share of the processors when they are contended: 1 to 10000, where others have 100.
    pub cpu_weight: Option<u64>,
    /// Bytes of memory of the process behind each device.
    pub device_memory: Option<u64>,
}

impl Limits {
    /// Parses `KEY=VALUE[,...]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for item in text.split(',') {
            let unknown = || {
                format!("`{item}`: give memory=SIZE, pids=NUMBER, cpu=NUMBER, cpu-weight=NUMBER or device-memory=SIZE")
            };
            let (key, value) = item.split_once('=').ok_or_else(unknown)?;
            let wrong = |problem: String| format!("{key}: {problem}");
            match key {
                "memory" => limits.memory = Some(size(value).map_err(wrong)?),
                "device-memory" => limits.device_memory = Some(size(value).map_err(wrong)?),
                "pids" => limits.pids = Some(number(value, 8, 1 << 22).map_err(wrong)?),
                "cpu-weight" => limits.cpu_weight = Some(number(value, 1, 10_000).map_err(wrong)?),
                "cpu" => limits.cpu = Some(quota(value).map_err(wrong)?),
                _ => return Err(unknown()),
            }
        }
        Ok(limits)
    }

    /// A machine with so much guest RAM can live within them. The error says why not.
    pub fn check(&self, ram: u64) -> Result<(), String> {
        match self.memory {
            Some(most) if most <= ram => Err(format!(
                "a limit of {most} bytes of memory leaves nothing beside {ram} bytes of guest RAM: the kernel would end the \
                 machine. Raise the limit, or give less --memory"
            )),
            _ => Ok(()),
        }
    }

    /// Something is limited.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// What is written where in the machine's group: controller, file, value.
    pub fn of_machine(&self) -> Vec<(&'static str, &'static str, String)> {
        let plain = |value: Option<u64>| value.map(|value| value.to_string());
        let cpu = self.cpu.map(|quota| format!("{quota} {PERIOD}"));
        let all = [
            ("memory", "memory.max", plain(self.memory)),
            ("pids", "pids.max", plain(self.pids)),
            ("cpu", "cpu.max", cpu),
            ("cpu", "cpu.weight", plain(self.cpu_weight)),
        ];
        all.into_iter().filter_map(|(controller, file, value)| Some((controller, file, value?))).collect()
    }

    /// The controllers without which it cannot be kept to them.
    pub fn controllers(&self) -> Vec<&'static str> {
        let device = self.device_memory.map(|_| "memory");
        self.of_machine().into_iter().map(|(controller, ..)| controller).chain(device).collect()
    }
}

/// At least what a process needs to start.
fn size(text: &str) -> Result<u64, String> {
    match byte_count(text)? {
        bytes if bytes >= 16 << 20 => Ok(bytes),
        _ => Err("16M at least".into()),
    }
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or(format!("give a number from {least} to {most}"))
}

/// Processors, of which there may be parts, as time of a period.
fn quota(text: &str) -> Result<u64, String> {
    let cpus = text.parse().ok().filter(|cpus: &f64| (0.01..=MAX_CPUS).contains(cpus));
    cpus.map(|cpus| (cpus * PERIOD as f64) as u64).ok_or(format!("give processors, from 0.01 to {MAX_CPUS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_what_is_meant() {
        let all = Limits::parse("memory=1G,pids=64,cpu=1.5,cpu-weight=50,device-memory=64M").unwrap();
        let files: Vec<String> =
            all.of_machine().into_iter().map(|(_, file, value)| format!("{file} {value}")).collect();
        assert_eq!(files, ["memory.max 1073741824", "pids.max 64", "cpu.max 150000 100000", "cpu.weight 50"]);
        assert_eq!((all.device_memory, all.any()), (Some(64 << 20), true));
        assert!(all.check(512 << 20).is_ok() && all.check(1 << 30).is_err());
        assert_eq!(Limits::parse("device-memory=16M").unwrap().controllers(), ["memory"]);
        for wrong in
            ["", "memory", "memory=", "memory=1M", "pids=0", "cpu=0", "cpu=NaN", "cpu=-1", "cpu-weight=10001", "io=1"]
        {
            assert!(Limits::parse(wrong).is_err(), "{wrong}");
        }
    }
}
