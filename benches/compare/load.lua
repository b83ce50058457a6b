-- One chat request, again and again; the result as one line of JSON, which load.py reads.
local body = assert(io.open(assert(os.getenv("COMPARE_BODY"), "COMPARE_BODY is not set"), "rb"))
wrk.method = "POST"
wrk.body = body:read("*a")
wrk.headers["content-type"] = "application/json"
body:close()

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,"max_us":%d,' ..
      '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\n',
      summary.requests, summary.duration, summary.bytes,
      latency:percentile(50), latency:percentile(99), latency.max,
      errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
