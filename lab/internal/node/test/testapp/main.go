// Command testapp is what the tests of the lab node run in Pods: a server, a crash, a line of output.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(testapp(os.Args[1:])) }

// testapp is the program that the tests run in Pods.
func testapp(args []string) int {
	switch args[0] {
	case "serve": // an HTTP server that tells files and its environment, becomes unready at will, and ends on SIGTERM
		return serve(args[1:])
	case "print":
		fmt.Println(strings.Join(args[1:], " "))
	case "exit":
		code, _ := strconv.Atoi(args[1])
		if len(args) > 2 {
			_ = os.WriteFile("/dev/termination-log", []byte(args[2]), 0o600)
		}
		fmt.Println("exiting with", code)
		return code
	case "show": // what a container sees of its world; see the tests of package sandbox
		return show()
	case "cat":
		b, err := os.ReadFile(args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		_, _ = os.Stdout.Write(b)
	case "echo": // standard input to standard output
		buf := make([]byte, 100)
		n, _ := os.Stdin.Read(buf)
		fmt.Printf("got %q\n", buf[:n])
	}
	return 0
}

func show() int {
	host, _ := os.Hostname()
	dir, _ := os.Getwd()
	fmt.Printf("host=%s dir=%s pid=%d x=%s\n", host, dir, os.Getpid(), os.Getenv("X"))
	b, err := os.ReadFile("/data/sub/file")
	fmt.Printf("data=%s err=%v\n", b, err)
	err = os.WriteFile("/data/sub/new", nil, 0o600)
	fmt.Printf("readonly=%v\n", errors.Is(err, syscall.EROFS))
	_, err = os.ReadDir("/home")
	fmt.Printf("hosthome=%v\n", err == nil)
	_, err = os.Stat("/proc/self/status")
	null, nullErr := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if nullErr == nil {
		_, nullErr = null.WriteString("x")
	}
	fmt.Printf("proc=%v null=%v tmp=%v\n", err == nil, nullErr == nil, os.WriteFile("/tmp/x", nil, 0o600) == nil)
	return 7
}

func serve(args []string) int {
	addr := ":8080"
	if len(args) > 0 {
		addr = args[0]
	}
	began := time.Now()
	http.HandleFunc("/file/", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, strings.TrimPrefix(r.URL.Path, "/file"))
	})
	http.HandleFunc("/env/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, os.Getenv(strings.TrimPrefix(r.URL.Path, "/env/")))
	})
	http.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat("/tmp/unready"); err == nil {
			http.Error(w, "not now", http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/touch/", func(_ http.ResponseWriter, r *http.Request) {
		_ = os.WriteFile("/tmp/"+strings.TrimPrefix(r.URL.Path, "/touch/"), nil, 0o600)
	})
	http.HandleFunc("/lookup/", func(w http.ResponseWriter, r *http.Request) {
		ips, err := net.LookupHost(strings.TrimPrefix(r.URL.Path, "/lookup/"))
		fmt.Fprint(w, strings.Join(ips, ","), " ", err)
	})
	http.HandleFunc("/get/", func(w http.ResponseWriter, r *http.Request) {
		c := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get("http://" + strings.TrimPrefix(r.URL.Path, "/get/"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_ = resp.Write(w)
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("request", r.URL.Path)
		fmt.Fprintf(w, "hello from %s", os.Getenv("HOSTNAME"))
	})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		fmt.Println("told to end after", time.Since(began).Round(time.Second))
		os.Exit(0)
	}()
	fmt.Println("serving at", addr)
	if err := http.ListenAndServe(addr, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
