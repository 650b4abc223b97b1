# make        build bin/isr and bin/isr-locksrv
# make demo   the main job: a machine suspended on one host, resumed on another
# make test   every test, with the race detector
# make bench  the measurements behind what isr(7) claims
# make lint   formatting, vet, manual pages
# make deb    Debian packages of client and server, in dist, with systemd units
# make install PREFIX=/usr/local

PREFIX = /usr/local
DESTDIR =
GO = go
SHARE = $(DESTDIR)$(PREFIX)/share

# The client's scripts of the 2004 pilot are links to isr. Those of the server:
# isr-locksrv links DIR.
SCRIPTS = isr_get_parcel_names isr_parcel_co isr_parcel_hoard isr_parcel_verify \
	isr_parcel_run isr_parcel_checkpoint isr_parcel_ci isr_connect_lka

all: bin/isr bin/isr-locksrv

bin/isr: FORCE
	$(GO) build -o $@ ./client/isr

bin/isr-locksrv: FORCE
	$(GO) build -o $@ ./locksrv/isr-locksrv

setup:
	contrib/setup

demo: setup all
	contrib/demo

# Whatever a test needs is installed by setup, so a test that would skip for
# the lack of it fails instead.
test: setup all lint
	ISR_TEST_REQUIRE=1 $(GO) test -race -timeout 30m ./...

bench: setup all
	contrib/bench

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
	test -z "$$unformatted" || { echo "not formatted: $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	@man/lint

install: all
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 bin/isr bin/isr-locksrv $(DESTDIR)$(PREFIX)/bin
	for page in man/*.[1578]; do \
		install -D -m 644 $$page $(SHARE)/man/man$${page##*.}/$${page##*/}; done
	for script in $(SCRIPTS); do \
		ln -sf isr $(DESTDIR)$(PREFIX)/bin/$$script && \
		echo .so man1/isr.1 >$(SHARE)/man/man1/$$script.1; done
	install -d $(SHARE)/isr/hooks
	install -m 755 hooks/samples/* $(SHARE)/isr/hooks
	install -d $(SHARE)/doc/isr-locksrv/examples
	install -m 644 contrib/sshd/* contrib/systemd/* $(SHARE)/doc/isr-locksrv/examples
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	for program in isr isr-locksrv; do \
		bin/$$program completion bash >$(SHARE)/bash-completion/completions/$$program && \
		bin/$$program completion zsh >$(SHARE)/zsh/site-functions/_$$program && \
		bin/$$program completion fish >$(SHARE)/fish/vendor_completions.d/$$program.fish || exit 1; done

deb:
	GO="$(GO)" contrib/package/build dist

# For contrib/package/build.
scripts:
	@echo $(SCRIPTS)

clean:
	rm -rf bin dist

FORCE:
.PHONY: all setup demo test bench lint install deb scripts clean FORCE
