//! What the server counts, in the text format of Prometheus (OpenMetrics).

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// Type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Durations = Family<Labels, Histogram, fn() -> Histogram>;

/// All of it.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    durations: Durations,
    pub in_flight: Gauge,
    queue_depth: Gauge,
    queue_wait: Histogram,
    stages: Durations,
    pub pictures: Counter,
    batch: Histogram,
    pub memory: Family<Labels, Gauge>,
    rejected: Family<Labels, Counter>,
}

/// From a millisecond to ten minutes.
fn seconds() -> Histogram {
    let bounds = [
        0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
        600.0,
    ];
    Histogram::new(bounds)
}

impl Metrics {
    pub fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("engine"),
            requests: Family::default(),
            durations: Family::new_with_constructor(seconds),
            in_flight: Gauge::default(),
            queue_depth: Gauge::default(),
            queue_wait: seconds(),
            stages: Family::new_with_constructor(seconds),
            pictures: Counter::default(),
            batch: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
            memory: Family::default(),
            rejected: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests by route and status", metrics.requests.clone());
        let help = "Seconds from a request's head to its answer's";
        registry.register("request_duration_seconds", help, metrics.durations.clone());
        registry.register("requests_in_flight", "Requests without an answer yet", metrics.in_flight.clone());
        registry.register("queue_depth", "Requests that wait for a device", metrics.queue_depth.clone());
        registry.register("queue_wait_seconds", "Seconds that requests waited", metrics.queue_wait.clone());
        registry.register("stage_duration_seconds", "Seconds of a stage of a batch", metrics.stages.clone());
        registry.register("images", "Pictures made", metrics.pictures.clone());
        registry.register("batch_pictures", "Pictures computed together", metrics.batch.clone());
        let help = "Bytes that a device keeps for later requests, and that it has free";
        registry.register("device_memory_bytes", help, metrics.memory.clone());
        registry.register("rejected", "Requests that were turned away, by reason", metrics.rejected.clone());
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What serves", build);
        metrics
    }

    /// A request was answered.
    pub fn answered(&self, route: &str, status: u16, elapsed: Duration) {
        let route = || ("route", route.to_owned());
        self.requests.get_or_create(&vec![route(), ("status", status.to_string())]).inc();
        self.durations.get_or_create(&vec![route()]).observe(elapsed.as_secs_f64());
    }

    /// A request was turned away before any work.
    pub fn turned_away(&self, reason: &str) {
        self.rejected.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    /// A device took a batch.
    pub fn taken(&self, pictures: usize, waits: impl Iterator<Item = Duration>) {
        self.batch.observe(pictures as f64);
        waits.for_each(|wait| self.queue_wait.observe(wait.as_secs_f64()));
    }

    /// A stage of a batch ended.
    pub fn stage(&self, stage: &str, elapsed: Duration) {
        self.stages.get_or_create(&vec![("stage", stage.to_owned())]).observe(elapsed.as_secs_f64());
    }

    /// A device's memory.
    pub fn memory_of(&self, device: &str, kind: &str, bytes: u64) {
        let labels = vec![("device", device.to_owned()), ("kind", kind.to_owned())];
        self.memory.get_or_create(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The text.
    pub fn text(&self, queue_depth: usize) -> String {
        self.queue_depth.set(i64::try_from(queue_depth).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_the_names_that_are_documented() {
        let metrics = Metrics::new();
        metrics.answered("/v1/images/edits", 400, Duration::from_millis(20));
        metrics.turned_away("queue");
        metrics.stage("decoder", Duration::from_secs(1));
        metrics.taken(3, [Duration::from_millis(1)].into_iter());
        metrics.memory_of("cpu", "kept", 7);
        let text = metrics.text(5);
        for line in [
            "engine_requests_total{route=\"/v1/images/edits\",status=\"400\"} 1",
            "engine_request_duration_seconds_count{route=\"/v1/images/edits\"} 1",
            "engine_queue_depth 5",
            "engine_queue_wait_seconds_count 1",
            "engine_stage_duration_seconds_sum{stage=\"decoder\"} 1.0",
            "engine_device_memory_bytes{device=\"cpu\",kind=\"kept\"} 7",
            "engine_rejected_total{reason=\"queue\"} 1",
            "engine_images_total 0",
            "engine_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
