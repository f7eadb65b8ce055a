//! Writers that block, fail and recover, and what becomes of the records meanwhile.

use std::sync::{
    Mutex,
    mpsc::{Sender, channel},
};

use super::*;
use crate::transaction::tests::full_transaction;

/// A target in memory that does what its script says, then takes everything.
#[derive(Clone, Default)]
struct Target {
    taken: Arc<Mutex<Vec<u8>>>,
    script: Arc<Mutex<Vec<Step>>>,
}

enum Step {
    /// Say that it is here, then wait until the other side is gone.
    Block(Sender<()>, Receiver<()>),
    /// Take so many bytes.
    Take(usize),
    /// Fail.
    Fail(ErrorKind),
}

impl Target {
    fn scripted(steps: Vec<Step>) -> Self {
        Self { script: Arc::new(Mutex::new(steps)), ..Self::default() }
    }

    fn lines(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        String::from_utf8(taken.clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let step = {
            let mut script = self.script.lock().unwrap();
            if script.is_empty() { None } else { Some(script.remove(0)) }
        };
        let n = match step {
            Some(Step::Fail(kind)) => return Err(kind.into()),
            Some(Step::Take(n)) => n.min(bytes.len()),
            Some(Step::Block(here, free)) => {
                here.send(()).unwrap();
                _ = free.recv();
                bytes.len()
            }
            None => bytes.len(),
        };
        self.taken.lock().unwrap().extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn queue(target: &Target) -> LogQueue {
    LogQueue::start(Box::new(target.clone()), Arc::default()).unwrap()
}

fn flush(queue: &LogQueue) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(queue.flush());
}

fn dropped(queue: &LogQueue) -> u64 {
    queue.counters.records.load(Ordering::Relaxed)
}

#[test]
fn records_of_a_worker_arrive_whole_and_in_order() {
    let target = Target::default();
    let queue = queue(&target);
    let mut buffer = LogBuffer::new(queue.clone());
    for n in 0..5_000 {
        buffer.append(|_, out| out.extend_from_slice(format!("{n} {}\n", "x".repeat(n % 100)).as_bytes()));
    }
    buffer.hand_over();
    flush(&queue);
    let lines = target.lines();
    assert_eq!(lines.len(), 5_000);
    assert!(lines.iter().enumerate().all(|(n, line)| *line == format!("{n} {}", "x".repeat(n % 100))));
    assert_eq!((dropped(&queue), queue.held.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_buffer_is_handed_over_before_it_grows_and_comes_back() {
    let target = Target::default();
    let queue = queue(&target);
    let mut buffer = LogBuffer::new(queue.clone());
    let tx = full_transaction();
    for _ in 0..1_000 {
        buffer.append(|records, out| records.access(out, &tx));
        assert!(buffer.bytes.capacity() <= bounds::LOG_BUFFER);
    }
    flush(&queue);
    assert!(buffer.returned.try_recv().is_ok(), "the writer gave a buffer back");
}

#[test]
fn a_dropped_buffer_hands_over_what_it_has() {
    let target = Target::default();
    let queue = queue(&target);
    let mut buffer = LogBuffer::new(queue.clone());
    buffer.append(|_, out| out.extend_from_slice(b"last\n"));
    drop(buffer);
    flush(&queue);
    assert_eq!(target.lines(), ["last"]);
}

#[test]
fn while_the_target_blocks_nobody_waits_memory_is_bounded_and_every_drop_is_counted_and_told() {
    let ((here, arrived), (free, wait)) = (channel(), channel());
    let target = Target::scripted(vec![Step::Block(here, wait)]);
    let queue = queue(&target);
    let mut buffer = LogBuffer::new(queue.clone());
    let line = [b"x".repeat(999), b"\n".to_vec()].concat();
    let mut append = |n: usize| {
        for _ in 0..n {
            buffer.append(|_, out| out.extend_from_slice(&line));
        }
        buffer.hand_over();
    };
    append(1);
    arrived.recv().unwrap();

    // Returns though nothing is written: four times what may wait.
    let offered = 4 * bounds::LOG_QUEUE / line.len();
    append(offered);
    assert!(queue.held.load(Ordering::Relaxed) <= bounds::LOG_QUEUE);
    let lost = dropped(&queue);
    assert!(lost > offered as u64 / 2, "dropped {lost} of {offered}");
    // An event still finds room.
    queue.push(b"event\n".to_vec());
    assert_eq!(dropped(&queue), lost);

    drop(free);
    flush(&queue);
    let lines = target.lines();
    let (access, told): (Vec<&String>, Vec<_>) = lines.iter().partition(|l| l.starts_with('x'));
    assert_eq!(access.len() as u64 + lost, offered as u64 + 1, "each record is written or counted");
    assert!(told.iter().any(|l| *l == "event"));
    let told: Vec<serde_json::Value> = told.iter().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["event.name"], "telemetry.dropped");
    assert_eq!(told[0]["attributes"]["records_total"], lost);
    assert_eq!(queue.held.load(Ordering::Relaxed), 0);
}

#[test]
fn events_too_are_bounded() {
    let ((here, arrived), (free, wait)) = (channel(), channel());
    let target = Target::scripted(vec![Step::Block(here, wait)]);
    let queue = queue(&target);
    queue.push(b"first\n".to_vec());
    arrived.recv().unwrap();
    for _ in 0..2 * bounds::LOG_SLOTS {
        queue.push(vec![b'\n'; 64 << 10]);
    }
    assert!(queue.held.load(Ordering::Relaxed) <= bounds::LOG_QUEUE + bounds::LOG_RESERVE);
    assert!(dropped(&queue) > 0);
    drop(free);
}

#[test]
fn after_a_failure_within_a_line_the_next_record_begins_a_new_line() {
    let target = Target::scripted(vec![Step::Take(7), Step::Fail(ErrorKind::StorageFull)]);
    let queue = queue(&target);
    let mut buffer = LogBuffer::new(queue.clone());
    for n in 0..3 {
        buffer.append(|_, out| out.extend_from_slice(format!("line{n}\n").as_bytes()));
    }
    buffer.hand_over();
    flush(&queue);
    assert_eq!(dropped(&queue), 2, "the torn line and the one behind it");
    queue.push(b"next\n".to_vec());
    flush(&queue);
    let lines = target.lines();
    assert_eq!(lines[..2], ["line0", "l"]);
    assert!(lines.iter().any(|l| l == "next"));
    assert!(lines.iter().any(|l| l.contains("\"records\":2")), "{lines:?}");
}

#[test]
fn interruptions_short_writes_and_a_full_pipe_lose_nothing() {
    let target = Target::scripted(vec![
        Step::Fail(ErrorKind::Interrupted),
        Step::Take(2),
        Step::Fail(ErrorKind::WouldBlock),
        Step::Take(1),
    ]);
    let queue = queue(&target);
    queue.push(b"whole\n".to_vec());
    flush(&queue);
    assert_eq!((target.lines(), dropped(&queue)), (vec!["whole".to_owned()], 0));
}

#[test]
fn what_is_handed_over_is_written_after_the_last_sender_is_gone() {
    let target = Target::default();
    let queue = queue(&target);
    let ((here, arrived), (free, wait)) = (channel(), channel::<()>());
    target.script.lock().unwrap().push(Step::Block(here, wait));
    queue.push(b"first\n".to_vec());
    arrived.recv().unwrap();
    queue.push(b"second\n".to_vec());
    drop(queue);
    drop(free);
    // The writer drops its target when it is done.
    while Arc::strong_count(&target.taken) > 1 {
        thread::yield_now();
    }
    assert_eq!(target.lines(), ["first", "second"]);
}
