//! Requests to REST by route, method and class of status.
//!
//! Invariants: routes are known before the first request, so that counting one looks it up and adds; a path that is no
//! route is counted as one name for all of them, so that strangers do not make labels.

use std::sync::OnceLock;
use std::time::Duration;
use tessera_telemetry::{Counter, Histogram, Name, Page};

/// Methods that routes have; any other one is the last.
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "other"];
/// Classes of status.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
/// What is no route.
const NO_ROUTE: &str = "none";

#[derive(Debug)]
struct Route {
    path: &'static str,
    answered: [[Counter; CLASSES.len()]; METHODS.len()],
    seconds: Histogram,
}

/// All requests.
#[derive(Debug, Default)]
pub struct Http {
    /// In order of paths.
    routes: OnceLock<Vec<Route>>,
}

impl Http {
    /// These are the routes; said once.
    pub fn know(&self, paths: impl Iterator<Item = &'static str>) {
        let mut paths: Vec<&'static str> = paths.chain([NO_ROUTE]).collect();
        paths.sort_unstable();
        paths.dedup();
        let route = |path| Route { path, answered: Default::default(), seconds: Histogram::new() };
        // They do not change while a process lives.
        let _ = self.routes.set(paths.into_iter().map(route).collect());
    }

    /// A request was answered; the route is empty when there is none.
    pub fn answered(&self, route: &str, method: &str, status: u16, took: Duration) {
        let Some(routes) = self.routes.get() else { return };
        let at = routes.binary_search_by(|known| known.path.cmp(route));
        let at = at.or_else(|_| routes.binary_search_by(|known| known.path.cmp(NO_ROUTE)));
        let Some(known) = at.ok().and_then(|at| routes.get(at)) else { return };
        let method = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1);
        let class = match status {
            ..300 => 0,
            300..400 => 1,
            400..500 => 2,
            500.. => 3,
        };
        known.answered[method][class].one();
        known.seconds.took(took);
    }

    /// What was counted.
    pub fn write(&self, page: &mut Page) {
        for route in self.routes.get().into_iter().flatten() {
            for (method, classes) in METHODS.iter().zip(&route.answered) {
                for (class, count) in CLASSES.iter().zip(classes) {
                    if count.get() > 0 {
                        page.whole(Name::HttpRequests, &[route.path, method, class], count.get());
                    }
                }
            }
            if route.seconds.count() > 0 {
                page.histogram(Name::HttpSeconds, &[route.path], &route.seconds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_telemetry::{Who, parse};

    #[test]
    fn requests_are_counted_by_route_and_what_is_none_as_one() {
        let http = Http::default();
        http.know(["/v1/tasks", "/v1/agents", "/v1/tasks"].into_iter());
        let took = Duration::from_millis(1);
        for (route, method, status) in [
            ("/v1/tasks", "GET", 200),
            ("/v1/tasks", "GET", 204),
            ("/v1/tasks", "POST", 503),
            ("/secret", "GET", 404),
            ("", "BREW", 404),
        ] {
            http.answered(route, method, status, took);
        }
        let mut page = Page::new(Who::Master);
        http.write(&mut page);
        let families = parse(&page.finish()).unwrap();
        let found = families.iter().find(|family| family.name == Name::HttpRequests.row().name).unwrap();
        let values = found.samples.iter().map(|(_, labels, value)| {
            let labels: Vec<&str> = labels.iter().map(|(_, value)| value.as_str()).collect();
            (labels.join(" "), value.as_str())
        });
        let values: Vec<(String, &str)> = values.collect();
        let expected = [
            ("/v1/tasks GET 2xx", "2"),
            ("/v1/tasks POST 5xx", "1"),
            ("none GET 4xx", "1"),
            ("none other 4xx", "1"),
        ];
        assert_eq!(values, expected.map(|(labels, value)| (labels.to_owned(), value)));
    }
}
