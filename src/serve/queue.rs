//! The queue between requests and devices.
//!
//! It is bounded: what does not fit is refused at once, with the time after which there will be room as measured so far. Each
//! device takes the oldest request and, to compute them together, those behind it whose pictures have the same shapes. A client
//! that leaves takes its request with it.

use super::errors::ApiError;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use unclip::image::Image;
use unclip::pipeline::{Observer, Pipeline, Recipe, Request};

/// Work for a device.
pub struct Job {
    /// Number of the model.
    pub model: usize,
    pub work: Work,
    /// Set when the client has left.
    pub left: Arc<AtomicBool>,
    pub updates: UnboundedSender<Update>,
    pub entered: Instant,
}

/// What is to be done.
pub enum Work {
    /// Pictures, with so many previews of each, and reports of steps if they are wanted.
    Pictures { request: Box<Request>, previews: usize, progress: bool },
    /// Anything else, which is done alone.
    Other(Box<Other>),
}

/// Work that makes no pictures by a request.
pub type Other = dyn FnOnce(&Pipeline, &mut Observer<'_>) -> unclip::Result<Answer> + Send + Sync;

/// What becomes of such work.
pub enum Answer {
    Value(Value),
    Image(Image),
}

/// What a device tells of its work.
pub enum Update {
    Step {
        stage: &'static str,
        done: usize,
        steps: usize,
    },
    Preview {
        picture: usize,
        number: usize,
        image: Image,
    },
    Picture {
        picture: usize,
        image: Image,
        recipe: Box<Recipe>,
    },
    /// The last one.
    Finished(Result<Option<Answer>, ApiError>),
}

impl Work {
    /// Pictures that it makes; other work counts for one.
    pub fn pictures(&self) -> usize {
        match self {
            Work::Pictures { request, .. } => request.pictures(),
            Work::Other(_) => 1,
        }
    }
}

impl Job {
    pub fn pictures(&self) -> usize {
        self.work.pictures()
    }

    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }
}

/// The requests that wait.
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
    most: usize,
    devices: usize,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Job>,
    /// Pictures that devices are at.
    running: usize,
    /// Seconds of a picture, by the batches of late.
    pace: Option<f64>,
    is_closed: bool,
}

impl Queue {
    pub fn new(most: usize, devices: usize) -> Queue {
        Queue { inner: Mutex::default(), changed: Condvar::new(), most, devices }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A poisoned lock means that a thread panicked; the queue is whole between statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets work wait for a device.
    ///
    /// # Errors
    /// The queue is full, or no longer takes work.
    pub fn enter(self: &Arc<Queue>, model: usize, work: Work) -> Result<Waiting, ApiError> {
        let (updates, receiver) = unbounded_channel();
        let left = Arc::new(AtomicBool::new(false));
        let mut inner = self.lock();
        if inner.is_closed {
            return Err(ApiError::unavailable("the server is shutting down", 1));
        }
        if inner.waiting.len() >= self.most {
            let message = format!("{} requests wait already, and no more may", self.most);
            return Err(ApiError::busy(&message, inner.seconds(self.devices)));
        }
        inner.waiting.push_back(Job { model, work, left: left.clone(), updates, entered: Instant::now() });
        drop(inner);
        self.changed.notify_all();
        Ok(Waiting { queue: self.clone(), left, updates: receiver })
    }

    /// Takes the oldest work, and what `joins` it, up to so many pictures in all. Waits for some; `None` when there will be none.
    pub fn take(&self, most: usize, joins: impl Fn(&Job, &Job) -> bool) -> Option<Vec<Job>> {
        let mut inner = self.lock();
        loop {
            inner.waiting.retain(|job| !job.has_left());
            if let Some(first) = inner.waiting.pop_front() {
                let mut pictures = first.pictures();
                let mut batch = vec![first];
                let mut at = 0;
                while pictures < most && at < inner.waiting.len() {
                    let job = &inner.waiting[at];
                    match pictures + job.pictures() <= most && joins(&batch[0], job) {
                        true => {
                            pictures += job.pictures();
                            batch.extend(inner.waiting.remove(at));
                        }
                        false => at += 1,
                    }
                }
                inner.running += pictures;
                return Some(batch);
            }
            if inner.is_closed {
                return None;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A batch of so many pictures is done, in so many seconds if it was finished.
    pub fn done(&self, pictures: usize, seconds: Option<f64>) {
        let mut inner = self.lock();
        inner.running = inner.running.saturating_sub(pictures);
        if let Some(seconds) = seconds {
            let each = seconds / pictures.max(1) as f64;
            inner.pace = Some(inner.pace.map_or(each, |pace| 0.7 * pace + 0.3 * each));
        }
    }

    /// Takes no more work. What waits is still taken by devices.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Requests that wait.
    pub fn depth(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether nothing waits and no device is at work.
    pub fn is_idle(&self) -> bool {
        let inner = self.lock();
        inner.waiting.is_empty() && inner.running == 0
    }

    /// Seconds until all that waits at present will have been made.
    pub fn seconds(&self) -> u64 {
        self.lock().seconds(self.devices)
    }
}

impl Inner {
    /// From 1 to 120, which clients wait for at most.
    fn seconds(&self, devices: usize) -> u64 {
        let waiting: usize = self.waiting.iter().map(Job::pictures).sum();
        let pictures = (waiting + self.running) as f64;
        (pictures * self.pace.unwrap_or(0.0) / devices.max(1) as f64).ceil().clamp(1.0, 120.0) as u64
    }
}

/// A request whose work waits or is done. When it is dropped, because the client has left, the work ends.
pub struct Waiting {
    queue: Arc<Queue>,
    left: Arc<AtomicBool>,
    updates: UnboundedReceiver<Update>,
}

impl Waiting {
    /// What the device tells next; a device that fails without a word is a fault of the server.
    pub async fn next(&mut self) -> Update {
        let lost = || Update::Finished(Err(ApiError::internal("the device's thread ended")));
        self.updates.recv().await.unwrap_or_else(lost)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.left.store(true, Ordering::Relaxed);
        let mut inner = self.queue.lock();
        // It no longer takes a place.
        inner.waiting.retain(|job| !Arc::ptr_eq(&job.left, &self.left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(pictures: usize) -> Work {
        let request = Request { pictures_per_prompt: pictures, ..Request::new("a") };
        Work::Pictures { request: Box::new(request), previews: 0, progress: false }
    }

    fn queue(most: usize) -> Arc<Queue> {
        Arc::new(Queue::new(most, 1))
    }

    #[test]
    fn what_joins_the_oldest_is_taken_with_it_up_to_the_most_pictures() {
        let queue = queue(9);
        let _all: Vec<Waiting> = [(0, 2), (1, 1), (0, 3), (0, 1), (0, 2)]
            .map(|(model, pictures)| queue.enter(model, work(pictures)).ok().unwrap())
            .into();
        let same = |a: &Job, b: &Job| a.model == b.model;
        let sizes = |batch: Vec<Job>| batch.iter().map(|job| (job.model, job.pictures())).collect::<Vec<_>>();
        assert_eq!(sizes(queue.take(5, same).unwrap()), [(0, 2), (0, 3)]);
        assert_eq!(sizes(queue.take(5, same).unwrap()), [(1, 1)]);
        assert_eq!(sizes(queue.take(5, same).unwrap()), [(0, 1), (0, 2)]);
        assert!(!queue.is_idle());
        queue.close();
        assert!(queue.take(5, same).is_none() && queue.enter(0, work(1)).is_err());
    }

    #[test]
    fn a_full_queue_says_when_there_will_be_room_by_what_was_measured() {
        let queue = queue(2);
        let first = queue.enter(0, work(4)).ok().unwrap();
        let _second = queue.enter(0, work(3)).ok().unwrap();
        queue.done(0, None);
        assert_eq!(queue.seconds(), 1);
        queue.done(2, Some(4.0));
        assert_eq!(queue.seconds(), 14);
        let refused = queue.enter(0, work(1)).err().unwrap();
        assert_eq!(refused.status.as_u16(), 429);
        // A client that leaves makes room.
        drop(first);
        assert_eq!((queue.depth(), queue.seconds()), (1, 6));
        assert!(queue.enter(0, work(1)).is_ok());
    }
}
