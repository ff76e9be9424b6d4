//! A login at a provider in front of a service that is reached by its host's name: oidc-provider, a browser, the binary.

use moorline_logins_tests::{browser::Browser, hub::Hub, oidc::Oidc};

const HOST: &str = "web--shop--edge1.services.test";

/// A browser as far as the hub sees it: keeps cookies, follows nothing by itself. Status, and where it is sent.
fn visit(hub: &Hub, jar: &str, url: &str) -> (u16, String, String) {
    let at = format!("{HOST}:{}:127.0.0.1", hub.port());
    let jar = hub.dir.path().join(jar);
    let jar = jar.to_str().unwrap();
    let words =
        ["-H", "Accept: text/html", "--resolve", &at, "-b", jar, "-c", jar, "-w", "\n%{redirect_url}\n%{http_code}"];
    let (code, text) = hub.curl(&[&words[..], &[url]].concat());
    let (body, to) = text.rsplit_once('\n').unwrap();
    (code, to.to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn s46_s73_a_service_by_name_lets_in_who_logged_in_at_a_provider() {
    let mut hub = Hub::start("");
    let oidc = Oidc::start(&format!("{}/auth/callback/sso", hub.url()));
    let yaml: String = oidc.yaml().lines().map(|line| format!("  {line}\n")).collect();
    hub.configure(&format!("servicesDomain: services.test\nlogins:\n{yaml}"));
    tokio::task::spawn_blocking(move || {
        let service = format!("https://{HOST}:{}/dashboards?a=b", hub.port());
        let (code, page, _) = visit(&hub, "jar", &service);
        assert_eq!(code, 303, "{page}");
        assert!(page.starts_with(&format!("{}/auth/browser?host=", hub.url())), "{page}");
        let (code, _, html) = visit(&hub, "jar", &page);
        assert!(code == 200 && html.contains("Log in with sso"), "{html}");
        let link = html.split("<a href=\"").nth(1).unwrap().split('"').next().unwrap().replace("&amp;", "&");
        let (code, provider, _) = visit(&hub, "jar", &format!("{}{link}", hub.url()));
        assert_eq!(code, 303, "{provider}");
        assert!(!provider.starts_with(&hub.url()), "{provider}");
        let (back, said) = Browser::of("alice").follow(&provider, &format!("{}/auth/callback/", hub.url()));
        assert!(back.as_str().contains("code="), "{back} {}", said.body);
        let (code, own, _) = visit(&hub, "jar", back.as_str());
        assert!(code == 302 && own.starts_with(&format!("{}/auth/browser?host=", hub.url())), "{own}");

        // The code is worth nothing in another browser, and is spoilt by the attempt.
        let (code, _, html) = visit(&hub, "stranger", &own);
        assert!(code == 401 && html.contains("not begun in this browser"), "{html}");
        let (code, _, html) = visit(&hub, "jar", &own);
        assert!(code == 401 && html.contains("Log in with sso"), "{html}");

        // Once more, without the stranger.
        let (_, provider, _) = visit(&hub, "jar", &format!("{}{link}", hub.url()));
        let (back, _) = Browser::of("alice").follow(&provider, &format!("{}/auth/callback/", hub.url()));
        let (_, own, _) = visit(&hub, "jar", back.as_str());
        let (code, page, _) = visit(&hub, "jar", &own);
        assert_eq!(code, 303, "{page}");
        let (code, home, _) = visit(&hub, "jar", &page);
        assert!(code == 303 && home.starts_with(&format!("https://{HOST}:{}/.moorline/login?", hub.port())), "{home}");
        let (code, to, _) = visit(&hub, "jar", &home);
        assert!(code == 303 && to == service, "{to}");
        // Known now; a grant is another matter.
        let (code, _, words) = visit(&hub, "jar", &service);
        assert!(code == 403 && words.contains("\\\"alice\\\" has no access to svc/shop/web:80"), "{code} {words}");
        hub.admin(&[
            "grant",
            "service",
            "--user",
            "alice",
            "--cluster",
            "edge1",
            "--namespace",
            "shop",
            "--service",
            "web",
        ]);
        moorline_logins_tests::hub::soon("the grant counts", std::time::Duration::from_secs(20), || {
            visit(&hub, "jar", &service).0 == 503 // edge1 has no agent here
        });
        let (code, _, _) = visit(&hub, "stranger", &service);
        assert_eq!(code, 303, "others still have to log in");

        // What the provider refuses is said on the page.
        let refused = format!("{page}&error=access_denied&error_description=closed%20%3Cb%3E");
        let (code, _, html) = visit(&hub, "stranger", &refused);
        assert!(code == 401 && !html.contains("closed"), "words of a link are not the hub's: {html}");
        visit(&hub, "stranger", &format!("{}{link}", hub.url()));
        let (code, _, html) = visit(&hub, "stranger", &refused);
        assert!(code == 401 && html.contains("closed &lt;b&gt;"), "{html}");
        let (code, _, _) =
            visit(&hub, "stranger", &format!("{}{link}", hub.url()).replace("provider=sso", "provider=no"));
        assert!((400..500).contains(&code), "{code}");
    })
    .await
    .unwrap();
}
