// Command hello is the example app: a web server that says where it runs. It is
// one static binary and needs nothing else in its image.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
)

func main() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	http.HandleFunc("GET /", hello)
	log.Printf("listening on port %s", port)
	log.Fatal(http.ListenAndServe(":"+port, nil))
}

// hello tells what the app sees of the world around it: in a Bulkhead Machine, a
// kernel that is not the host's.
func hello(w http.ResponseWriter, r *http.Request) {
	kernel, err := os.ReadFile("/proc/version")
	if err != nil {
		kernel = []byte(err.Error())
	}
	host, err := os.Hostname()
	if err != nil {
		host = err.Error()
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hello from Bulkhead!\n\n")
	fmt.Fprintf(w, "app:     %s\n", os.Getenv("FLY_APP_NAME"))
	fmt.Fprintf(w, "machine: %s\n", os.Getenv("FLY_MACHINE_ID"))
	fmt.Fprintf(w, "host:    %s\n", host)
	fmt.Fprintf(w, "kernel:  %s\n", strings.TrimSpace(string(kernel)))
	fmt.Fprintf(w, "asked:   %s %s://%s%s\n", r.Method, r.Header.Get("X-Forwarded-Proto"), r.Host, r.URL.Path)
}
