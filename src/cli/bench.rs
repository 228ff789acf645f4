//! `engine bench`: how fast a device is, as a table or as JSON, and whether it was faster before.

use super::args::BenchArguments;
use super::devices::Stored;
use super::profile::{self, Profile};
use super::{Failure, devices};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use unclip::backend::Roofline;
use unclip::cases::{self, Timing, Workload, cost, time, workloads};
use unclip::plan::Cost;
use unclip::{Error, Precision, Result};

/// How much longer a median must be to count as slower, whatever the samples say.
const SLOWER: f64 = 1.05;

/// A whole run, as `--json` prints it.
#[derive(Deserialize, Serialize)]
struct Report {
    engine: String,
    device: String,
    dtype: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_flops_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes_per_s: Option<f64>,
    cases: Vec<Row>,
}

/// One case of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Row {
    name: String,
    median_s: f64,
    least_s: f64,
    most_s: f64,
    quartiles_s: [f64; 2],
    samples: usize,
    flops: u64,
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

impl Row {
    fn new(name: String, timing: &Timing, cost: &Cost) -> Row {
        Row {
            name,
            median_s: timing.median(),
            least_s: timing.least(),
            most_s: timing.most(),
            quartiles_s: timing.quartiles(),
            samples: timing.samples(),
            flops: cost.flops,
            bytes: cost.bytes,
            profile: None,
        }
    }

    /// Whether this is slower than an earlier row by more than the noise of both.
    fn slower_than(&self, earlier: &Row) -> bool {
        self.least_s > earlier.most_s && self.median_s > SLOWER * earlier.median_s
    }

    /// A line of the table. `cache_bytes` is what the device's cache holds, where that is known.
    fn line(&self, roofline: Option<Roofline>, cache_bytes: u64, earlier: Option<&Row>) -> String {
        let spread = 50.0 * (self.quartiles_s[1] - self.quartiles_s[0]) / self.median_s;
        let (flops, bytes) = (self.flops as f64 / self.median_s, self.bytes as f64 / self.median_s);
        let mut line = format!("{:36} {:>10} {spread:>5.1} %", self.name, duration(self.median_s));
        line += &match self.flops {
            0 => format!(" {:>9}", ""),
            _ => format!(" {:>9.1}", flops / 1e9),
        };
        line += &format!(" {:>8.1}", bytes / 1e9);
        if let Some(roofline) = roofline {
            let cost = Cost { flops: self.flops, bytes: self.bytes, steps: 1 };
            let (share, arithmetic) = roofline.share(&cost, self.median_s);
            line += &match arithmetic {
                true => format!(" {:>4.0} % of {:<6}", 100.0 * share, "peak"),
                // What comes from a cache is no share of what memory delivers.
                false if share > 1.0 || self.bytes <= cache_bytes => format!(" {:>15}", "cached"),
                false => format!(" {:>4.0} % of {:<6}", 100.0 * share, "memory"),
            };
        }
        if let Some(earlier) = earlier {
            let verdict = if self.slower_than(earlier) { " slower" } else { "" };
            line += &format!(" {:>6.2}{verdict}", earlier.median_s / self.median_s);
        }
        line.trim_end().to_owned() + "\n"
    }
}

/// Seconds with three or more digits.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.3} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

/// Times the cases that the filters name.
///
/// # Errors
/// No case has such a name, the device failed, the earlier run cannot be read, or something became slower.
pub fn bench(arguments: &BenchArguments) -> Result<(), Failure> {
    let chosen = choose(&arguments.filter)?;
    if arguments.list {
        return Ok(super::print(&chosen.iter().map(|workload| workload.name() + "\n").collect::<String>())?);
    }
    if !(arguments.seconds >= 0.0 && arguments.seconds <= 3600.0) {
        return Err(Error::value("--seconds", arguments.seconds, "must be 0 to 3600").into());
    }
    let earlier = arguments.compare.as_deref().map(read).transpose()?;
    let rows: HashMap<&str, &Row> =
        earlier.iter().flat_map(|report| &report.cases).map(|row| (row.name.as_str(), row)).collect();

    let why = "made-up weights are f32; --dtype names another type";
    let made_up = || Stored { precision: Precision::F32, bytes: 0, why: why.to_owned() };
    let device = devices::open(&arguments.device, &made_up)?;
    let backend = device.backend.as_ref();
    if let Some(remark) = &device.remark {
        eprintln!("{remark}");
    }
    let dtype = backend.precision().name().to_owned();
    if let Some(earlier) = earlier.iter().find(|e| e.device != backend.name() || e.dtype != dtype) {
        eprintln!("the earlier run was made on {} in {}", earlier.device, earlier.dtype);
    }
    // Other programs slow a measurement down, never up.
    let better = |a: Roofline, b: Roofline| Roofline { flops: a.flops.max(b.flops), bytes: a.bytes.max(b.bytes) };
    let roofline = (0..3).filter_map(|_| backend.roofline()).reduce(better);
    let cache_bytes = if backend.name().starts_with("cpu ") { largest_cache() } else { 0 };
    let table = |text: String| if arguments.json { Ok(()) } else { super::print(&text) };
    table(head(&backend.name(), roofline, earlier.is_some()))?;
    if arguments.profile && !backend.name().starts_with("cpu ") {
        table(format!("{}\n", profile::REMARK))?;
    }
    let mut report = Report {
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        device: backend.name(),
        dtype,
        peak_flops_per_s: roofline.map(|r| r.flops),
        memory_bytes_per_s: roofline.map(|r| r.bytes),
        cases: Vec::new(),
    };
    for workload in chosen {
        let mut executable = workload.prepare(backend, backend.precision().storage())?;
        // First, because a device without a clock is to say so before work begins.
        let launches = arguments.profile.then(|| cases::profile(executable.as_mut(), profile::REPEATS)).transpose()?;
        let timing = time(executable.as_mut(), Duration::from_secs_f64(arguments.seconds))?;
        let mut row = Row::new(workload.name(), &timing, &cost(executable.as_ref()));
        row.profile = launches.map(|launches| Profile::new(executable.as_ref(), &launches));
        table(row.line(roofline, cache_bytes, rows.get(row.name.as_str()).copied()))?;
        table(row.profile.as_ref().map_or(String::new(), Profile::text))?;
        report.cases.push(row);
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Error::request("--json", e.to_string()))?;
        super::print(&(text + "\n"))?;
    }
    verdict(&report.cases, &rows)
}

/// Bytes of the processor's last cache; 0 where the system does not say.
fn largest_cache() -> u64 {
    let of_level = |level: u32| -> Option<u64> {
        let size = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size")).ok()?;
        Some(size.trim().strip_suffix('K')?.parse::<u64>().ok()? << 10)
    };
    (0..5).filter_map(of_level).max().unwrap_or(0)
}

/// The cases whose names contain one of the filters; without any, all that are not heavy.
fn choose(filters: &[String]) -> Result<Vec<Workload>> {
    let wanted = |workload: &Workload| {
        let name = workload.name();
        if filters.is_empty() { !workload.heavy() } else { filters.iter().any(|f| name.contains(f.as_str())) }
    };
    let chosen: Vec<Workload> = workloads().into_iter().filter(wanted).collect();
    if chosen.is_empty() {
        let reason = format!("no case's name contains {}; `engine bench --list` prints all", filters.join(" or "));
        return Err(Error::request("--filter", reason));
    }
    Ok(chosen)
}

/// An earlier report.
fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::request("--compare", format!("{}: not what --json prints: {e}", path.display())))
}

/// What stands above the table.
fn head(device: &str, roofline: Option<Roofline>, compared: bool) -> String {
    let mut text = format!("{device}\n");
    if let Some(roofline) = roofline {
        text += &format!("peak {:.0} GFLOP/s, memory {:.1} GB/s\n", roofline.flops / 1e9, roofline.bytes / 1e9);
    }
    text += &format!("\n{:36} {:>10} {:>7} {:>9} {:>8}", "case", "time", "spread", "GFLOP/s", "GB/s");
    if roofline.is_some() {
        text += &format!(" {:<16}", "roofline");
    }
    if compared {
        text += &format!(" {:>6}", "faster");
    }
    text.trim_end().to_owned() + "\n"
}

/// An error that names what became slower, if anything did; a file that shares no case with this run is one, too.
fn verdict(rows: &[Row], earlier: &HashMap<&str, &Row>) -> Result<(), Failure> {
    let pairs: Vec<(&Row, &Row)> = rows.iter().filter_map(|r| Some((r, *earlier.get(r.name.as_str())?))).collect();
    if pairs.is_empty() && !earlier.is_empty() {
        return Err(Error::request("--compare", "the earlier run has none of these cases").into());
    }
    let slower = pairs.iter().filter(|(now, before)| now.slower_than(before));
    let named: Vec<String> =
        slower.map(|(now, before)| format!("{} {:.2} times", now.name, now.median_s / before.median_s)).collect();
    match named.is_empty() {
        true => Ok(()),
        false => Err(Failure::Slower(named.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, least: f64, median: f64, most: f64) -> Row {
        let (name, quartiles_s) = (name.to_owned(), [median; 2]);
        Row {
            name,
            median_s: median,
            least_s: least,
            most_s: most,
            quartiles_s,
            samples: 5,
            flops: 10,
            bytes: 10,
            profile: None,
        }
    }

    #[test]
    fn only_what_noise_cannot_explain_is_slower() {
        let before = row("a", 1.0, 1.1, 1.2);
        assert!(row("a", 1.3, 1.4, 1.5).slower_than(&before));
        assert!(!row("a", 1.15, 1.4, 1.5).slower_than(&before), "the samples overlap");
        assert!(!row("a", 1.201, 1.21, 1.3).slower_than(&row("a", 1.19, 1.195, 1.2)), "by one hundredth");
        assert!(!row("a", 0.5, 0.6, 0.7).slower_than(&before));
        let earlier = HashMap::from([("a", &before)]);
        assert!(verdict(&[row("a", 1.0, 1.1, 1.2), row("b", 9.0, 9.0, 9.0)], &earlier).is_ok());
        let error = verdict(&[row("a", 2.2, 2.2, 2.2)], &earlier).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().as_str()), (1, "slower: a 2.00 times"));
        assert!(verdict(&[row("b", 1.0, 1.0, 1.0)], &earlier).unwrap_err().to_string().contains("none of these"));
    }

    #[test]
    fn what_fits_the_cache_has_no_share_of_memory() {
        let roofline = Some(Roofline { flops: 100.0, bytes: 20.0 });
        let row = Row { flops: 10, bytes: 100, ..row("a", 10.0, 10.0, 10.0) };
        assert!(row.line(roofline, 0, None).contains("50 % of memory"), "{}", row.line(roofline, 0, None));
        assert!(row.line(roofline, 100, None).contains("cached"));
        let fast = Row { median_s: 4.0, ..row.clone() };
        assert!(fast.line(roofline, 0, None).contains("cached"), "125 % of memory");
        let bound_by_arithmetic = Row { flops: 2000, ..row };
        assert!(bound_by_arithmetic.line(roofline, 1 << 20, None).contains("200 % of peak"));
    }

    #[test]
    fn filters_choose_by_part_of_the_name() {
        let names = |filters: &[&str]| -> Vec<String> {
            let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
            choose(&filters).unwrap().iter().map(Workload::name).collect()
        };
        assert_eq!(names(&["decoder/karlo"]), ["decoder/karlo"]);
        assert_eq!(names(&["linear/one-", "prior/tiny"]).len(), 4);
        assert!(names(&[]).iter().all(|name| !name.contains("/karlo") || name.contains('-')));
        assert!(choose(&["no such case".to_owned()]).is_err());
    }

    #[test]
    fn times_keep_their_digits() {
        assert_eq!([2.5, 0.0123456, 1.5e-6].map(duration), ["2.500 s", "12.346 ms", "1.50 us"]);
    }
}
