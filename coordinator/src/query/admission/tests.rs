use tokio::task::JoinHandle;

use super::*;

const PATIENT: Duration = Duration::from_secs(20);

fn need(class: Class, session: u64, priority: Priority) -> Need {
    Need { class, memory_bytes: 0, session, priority }
}

fn long() -> Need {
    need(Class::Long, 1, Priority::Normal)
}

fn short() -> Need {
    need(Class::Short, 1, Priority::Normal)
}

/// One that waits, and its ticket.
async fn waiting(admission: &Admission, need: Need) -> (JoinHandle<Result<Permit, Error>>, Ticket) {
    let (queued, is_queued) = oneshot::channel();
    let admission = admission.clone();
    let waiting =
        tokio::spawn(async move { admission.admit(need, |ticket| queued.send(ticket).unwrap()).await });
    (waiting, is_queued.await.unwrap())
}

#[tokio::test]
async fn the_queue_is_in_order_and_bounded() {
    let admission = Admission::new(1, 1, PATIENT);
    let running = admission.admit(long(), |_| ()).await.unwrap();
    let (second, ticket) = waiting(&admission, long()).await;
    assert_eq!((admission.waiting(), admission.place(ticket)), (1, 1));
    assert_eq!(admission.places(), HashMap::from([(ticket, 1)]));
    let full = admission.admit(long(), |_| ()).await.unwrap_err().to_string();
    assert!(full.contains("--queue-limit") && full.contains("1 long queries run and 1 wait"), "{full}");
    drop(running);
    drop(second.await.unwrap().unwrap());
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test]
async fn neither_class_waits_for_the_other() {
    for (class, other, most) in [(Class::Long, Class::Short, 2), (Class::Short, Class::Long, 4)] {
        let admission = Admission::new(4, 1, PATIENT);
        let mut running = Vec::new();
        for _ in 0..most {
            running.push(admission.admit(need(class, 1, Priority::High), |_| ()).await.unwrap());
        }
        let (last, _ticket) = waiting(&admission, need(class, 1, Priority::High)).await;
        assert!(matches!(
            admission.admit(need(class, 2, Priority::High), |_| ()).await,
            Err(Error::Exhausted(_))
        ));
        // Nobody of the other class has to wait, nor finds the queue full.
        drop(admission.admit(need(other, 1, Priority::Low), |_| panic!("it waits")).await.unwrap());
        drop(running);
        drop(last.await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn long_queries_run_that_fit_in_memory_together() {
    let admission = Admission::new(8, 8, PATIENT);
    admission.know_memory(100);
    let of = |memory_bytes| Need { memory_bytes, ..long() };
    let first = admission.admit(of(60), |_| ()).await.unwrap();
    let second = admission.admit(of(40), |_| ()).await.unwrap();
    let (third, _) = waiting(&admission, of(50)).await;
    drop(second);
    assert_eq!(admission.waiting(), 1, "40 are free and 50 are wanted");
    drop(first);
    let third = third.await.unwrap().unwrap();
    // What short ones take is little.
    drop(admission.admit(Need { class: Class::Short, ..of(1_000) }, |_| panic!("it waits")).await.unwrap());
    drop(third);
    // More than there is: alone.
    let alone = admission.admit(of(1_000), |_| panic!("it waits")).await.unwrap();
    let (next, _) = waiting(&admission, of(1)).await;
    drop(alone);
    drop(next.await.unwrap().unwrap());
}

#[tokio::test]
async fn who_is_cancelled_while_it_waits_frees_its_place_and_those_behind_it() {
    let admission = Admission::new(8, 2, PATIENT);
    admission.know_memory(100);
    let of = |memory_bytes| Need { memory_bytes, ..long() };
    let running = admission.admit(of(60), |_| ()).await.unwrap();
    let (large, _) = waiting(&admission, of(60)).await;
    let (small, ticket) = waiting(&admission, of(1)).await;
    assert_eq!(admission.place(ticket), 2);
    large.abort();
    assert!(large.await.unwrap_err().is_cancelled());
    // Nothing that runs has ended.
    drop(small.await.unwrap().unwrap());
    assert_eq!(admission.waiting(), 0);
    drop(running);
    // All places are back.
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(admission.admit(of(25), |_| panic!("it waits")).await.unwrap());
    }
}

#[tokio::test]
async fn more_urgent_sessions_are_let_in_first() {
    let admission = Admission::new(1, 8, PATIENT);
    let running = admission.admit(short(), |_| ()).await.unwrap();
    let mut places = Vec::new();
    let mut waits = Vec::new();
    for (session, priority) in [(2, Priority::Low), (3, Priority::Normal), (4, Priority::High)] {
        let (wait, ticket) = waiting(&admission, need(Class::Short, session, priority)).await;
        places.push(ticket);
        waits.push(wait);
    }
    let places: Vec<usize> = places.into_iter().map(|ticket| admission.place(ticket)).collect();
    assert_eq!(places, [3, 2, 1]);
    drop(running);
    while let Some(next) = waits.pop() {
        let permit = next.await.unwrap().unwrap();
        assert_eq!(admission.waiting(), waits.len(), "only the next one is let in");
        drop(permit);
    }
}

#[tokio::test]
async fn who_waits_is_refused_when_it_closes_and_who_runs_goes_on() {
    let admission = Admission::new(1, 1, PATIENT);
    let running = admission.admit(long(), |_| ()).await.unwrap();
    let running_short = admission.admit(short(), |_| ()).await.unwrap();
    let (waiting_long, _) = waiting(&admission, long()).await;
    let (waiting_short, _) = waiting(&admission, short()).await;
    assert!(!admission.is_closed());
    admission.close();
    assert!(admission.is_closed());
    for waiting in [waiting_long, waiting_short] {
        let refused = waiting.await.unwrap().unwrap_err();
        assert!(matches!(refused, Error::Stopping), "{refused}");
    }
    drop((running, running_short));
    let refused = admission.admit(long(), |_| ()).await.unwrap_err();
    assert!(matches!(refused, Error::Stopping), "{refused}");
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    let admission = Admission::new(1, 4, Duration::from_millis(50));
    let running = admission.admit(long(), |_| ()).await.unwrap();
    let error = admission.admit(long(), |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error}");
    assert!(error.to_string().contains("one of 1 places of long queries"), "{error}");
    assert_eq!(admission.waiting(), 0);
    drop(running);
    drop(admission.admit(long(), |_| panic!("it waits")).await.unwrap());
}
