//! As much of a browser as logins need: cookies, redirects, one form.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
};
use url::Url;

#[derive(Default)]
pub struct Browser {
    cookies: BTreeMap<String, String>,
    /// Who sits at it.
    pub account: String,
}

pub struct Page {
    pub code: u16,
    pub location: Option<String>,
    pub body: String,
}

impl Browser {
    pub fn of(account: &str) -> Self {
        Self { account: account.to_owned(), ..Self::default() }
    }

    pub fn request(&mut self, url: &Url, form: Option<&str>) -> Page {
        assert_eq!(url.scheme(), "http", "{url}");
        let address = (url.host_str().unwrap(), url.port().unwrap());
        let mut stream = TcpStream::connect(address).unwrap();
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let method = if form.is_some() { "POST" } else { "GET" };
        let body = form.unwrap_or_default();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\nAccept: text/html\r\nx-account: {}\r\nCookie: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            address.0,
            address.1,
            self.account,
            cookies.join("; "),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut location = None;
        for line in head.lines().skip(1) {
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            match name.to_ascii_lowercase().as_str() {
                "location" => location = Some(value.to_owned()),
                "set-cookie" => {
                    let (name, value) = value.split(';').next().unwrap().split_once('=').unwrap();
                    self.cookies.insert(name.to_owned(), value.to_owned());
                }
                _ => {}
            }
        }
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Page { code, location, body: body.to_owned() }
    }

    /// Follows redirects until one leads to an address that begins with `end`, or none comes.
    pub fn follow(&mut self, start: &str, end: &str) -> (Url, Page) {
        let mut url = Url::parse(start).unwrap();
        let mut page = self.request(&url, None);
        for _ in 0..20 {
            let Some(location) = &page.location else { return (url, page) };
            url = url.join(location).unwrap();
            if url.as_str().starts_with(end) {
                return (url, page);
            }
            page = self.request(&url, None);
        }
        panic!("redirects without end: {url}");
    }

    /// Types a device's code where it belongs.
    pub fn confirm_device(&mut self, address: &str) -> Page {
        let url = Url::parse(address).unwrap();
        let page = self.request(&url, None);
        let hidden = |page: &Page, name: &str| {
            let at = page.body.split(&format!("name=\"{name}\" value=\"")).nth(1)?;
            at.split('"').next().map(str::to_owned)
        };
        let xsrf = hidden(&page, "xsrf").unwrap_or_else(|| panic!("no form: {} {}", page.code, page.body));
        let code = url.query_pairs().find(|(name, _)| name == "user_code").unwrap().1.into_owned();
        let mut at = url.clone();
        at.set_query(None);
        let page = self.request(&at, Some(&format!("xsrf={xsrf}&user_code={code}&confirm=yes")));
        let Some(location) = &page.location else { return page };
        self.follow(at.join(location).unwrap().as_str(), "nowhere").1
    }
}

/// The value of a query's field.
pub fn field(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
}
