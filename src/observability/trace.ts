/** `version-traceid-parentid-flags` (W3C Trace Context §3.2.2); all-zero ids are invalid (§3.2.2.3, §3.2.2.4). */
const pattern = /^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?$/;

/** The header when it is well-formed; undefined otherwise (§4.2: a bad one is dropped). */
export function readTraceparent(header: string | null | undefined): string | undefined {
  return typeof header === 'string' && header.length <= 128 && pattern.test(header) ? header : undefined;
}

/** What a log line says of a trace. */
export function traceFields(traceparent: string | undefined): { traceId?: string; spanId?: string } {
  return traceparent === undefined ? {} : { traceId: traceparent.slice(3, 35), spanId: traceparent.slice(36, 52) };
}
