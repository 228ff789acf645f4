//! A server of its own for a test, and a client that speaks plain HTTP.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Longest time that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `engine serve`; killed in the end.
pub struct Server {
    child: Mutex<Child>,
    pub address: String,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts one on a free port, on two threads, and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Server {
        let server = Server::start_loading(arguments);
        let began = Instant::now();
        while server.get("/readyz").status != 200 {
            assert!(began.elapsed() < PATIENCE, "it did not get ready:\n{}", server.log());
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// The same without waiting for more than its address.
    pub fn start_loading(arguments: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.args(["serve", "--port", "0", "--device", "cpu", "--threads", "2"]).args(arguments);
        for variable in ["MODEL", "PRIOR", "DEVICE", "DTYPE", "THREADS", "HOST", "PORT"] {
            command.env_remove(format!("ENGINE_{variable}"));
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        for line in lines.by_ref() {
            let line = line.unwrap();
            log.lock().unwrap().push_str(&format!("{line}\n"));
            if let Some((_, found)) = line.split_once("listening at http://") {
                address = Some(found.to_owned());
                break;
            }
        }
        let kept = log.clone();
        thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push_str(&format!("{line}\n")));
        });
        let address = address.unwrap_or_else(|| panic!("it does not listen:\n{}", log.lock().unwrap()));
        Server { child: Mutex::new(child), address, log }
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The same once it has these words: lines come through a pipe.
    pub fn log_with(&self, words: &str) -> String {
        let began = Instant::now();
        while !self.log().contains(words) && began.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(2));
        }
        self.log()
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics").text()
    }

    /// Waits until the metrics say so.
    pub fn wait_until(&self, says: impl Fn(&str) -> bool) {
        let began = Instant::now();
        loop {
            let metrics = self.metrics();
            if says(&metrics) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{metrics}\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends it a signal by its name.
    pub fn signal(&self, name: &str) {
        let id = self.child.lock().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// How it ended, if it does within this time.
    pub fn wait(&self, time: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            match self.child.lock().unwrap().try_wait().unwrap() {
                None if began.elapsed() < time => thread::sleep(Duration::from_millis(2)),
                ended => return ended,
            }
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").finish()
    }

    pub fn post(&self, path: &str, fields: &Value) -> Answer {
        self.begin(path, fields).finish()
    }

    /// Sends JSON, and leaves the answer for later.
    pub fn begin(&self, path: &str, fields: &Value) -> Pending {
        self.send("POST", path, &[("Content-Type", "application/json")], fields.to_string().as_bytes())
    }

    /// Sends a form.
    pub fn form(&self, path: &str, parts: &[Part]) -> Answer {
        let (kind, body) = form(parts);
        self.send("POST", path, &[("Content-Type", &kind)], &body).finish()
    }

    /// Sends any request.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Pending {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        // A server that refuses a request by its head may not read on.
        _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        Pending(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        _ = child.kill();
        _ = child.wait();
    }
}

/// A part of a form.
pub struct Part {
    head: String,
    bytes: Vec<u8>,
}

impl Part {
    pub fn text(name: &str, text: &str) -> Part {
        Part { head: format!("Content-Disposition: form-data; name=\"{name}\""), bytes: text.into() }
    }

    pub fn file(name: &str, file: &str, bytes: &[u8]) -> Part {
        let head =
            format!("Content-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\nContent-Type: image/png");
        Part { head, bytes: bytes.to_vec() }
    }
}

/// Type and bytes of a form.
pub fn form(parts: &[Part]) -> (String, Vec<u8>) {
    const BOUNDARY: &str = "a-boundary-that-no-part-has";
    let mut body = Vec::new();
    for Part { head, bytes } in parts {
        body.extend(format!("--{BOUNDARY}\r\n{head}\r\n\r\n").into_bytes());
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

/// A request whose answer is still to come.
pub struct Pending(pub TcpStream);

impl Pending {
    pub fn finish(mut self) -> Answer {
        let mut bytes = Vec::new();
        // What came before a connection broke is the answer.
        _ = self.0.read_to_end(&mut bytes);
        Answer::parse(&bytes)
    }
}

/// An answer.
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_lowercase(), value.to_owned())
        };
        let headers: Vec<(String, String)> = lines.map(header).collect();
        let mut answer = Answer { status, headers, body: bytes[end + 4..].to_vec() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunked(&answer.body);
        }
        answer
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        let rest = &bytes[end + 2..];
        if size == 0 || rest.len() < size {
            break;
        }
        whole.extend(&rest[..size]);
        bytes = &rest[size + 2..];
    }
    whole
}
