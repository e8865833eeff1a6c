"""`aiostage monitor`: what a running program's rings do, live. docs/monitor.md has the page for users."""
