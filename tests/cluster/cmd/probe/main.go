// Command probe speaks HTTP and DNS from within a pod whose image holds nothing else.
//
//	probe serve ADDRESS      answers every request with the pod's name, the client's address and the request's path
//	probe get URL [COUNT]    prints the body of COUNT answers, a line each; fails at the first that is not 200
//	probe resolve NAME       prints the name's addresses, a line each
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience bounds one request or look-up.
const patience = 10 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 2 && args[0] == "get":
		return get(args[1], 1)
	case len(args) == 3 && args[0] == "get":
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return get(args[1], count)
	case len(args) == 2 && args[0] == "resolve":
		return resolve(args[1])
	}
	return fmt.Errorf("usage: probe serve ADDRESS | get URL [COUNT] | resolve NAME")
}

func serve(address string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server := &http.Server{
		Addr:              address,
		ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s %s\n", name, r.RemoteAddr, r.URL.Path)
		}),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	fmt.Println("serving on", address)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return server.Close()
	}
}

func get(url string, count int) error {
	// A connection per request, so that each is balanced anew.
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for range count {
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, answer.Status)
		}
		fmt.Println(strings.TrimSpace(string(body)))
	}
	return nil
}

func resolve(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		fmt.Println(address)
	}
	return nil
}
