/**
 * The last guard before anything is written to a log: call sites must not hand over secrets, and when one does anyway, it
 * does not reach the output.
 */

const secretKey = /password|passwd|secret|token|authorization|cookie|credential$|private_?key|api_?key/i;
/** Names that hold such a word and are safe: counts, names and identifiers. */
const safeKey = /^(tokenType|token_type|tokenCount|secretName|credentialId)$/;
/** Compact JWS or JWE (RFC 7515 §7.1): a base64url `{"` and dots. */
const jwt = /eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,4}/g;
const bearer = /\b(Bearer|Basic|DPoP)\s+[A-Za-z0-9\-._~+/]{8,}=*/gi;
const urlPassword = /\b([a-z][a-z0-9+.-]{1,20}:\/\/[^\s:/@]{0,200}):[^\s@/]{1,500}@/gi;
const assignment =
  /\b(password|passwd|secret|client_secret|access_token|token)(["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;&)]+)/gi;
const pem = /-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g;

export const redacted = '[redacted]';
const maxString = 4_096;
const maxDepth = 6;
const maxEntries = 100;

export function redactString(value: string): string {
  const bounded = value.length > maxString ? `${value.slice(0, maxString)}…` : value;
  return bounded
    .replace(pem, redacted)
    .replace(jwt, redacted)
    .replace(bearer, `$1 ${redacted}`)
    .replace(urlPassword, `$1:${redacted}@`)
    .replace(assignment, `$1$2${redacted}`);
}

/** A copy that can be written: bounded in size, free of what looks like a secret. */
export function redact(value: unknown, key = '', depth = 0): unknown {
  if (secretKey.test(key) && !safeKey.test(key) && typeof value !== 'number' && typeof value !== 'boolean') {
    return value === undefined || value === null ? value : redacted;
  }
  switch (typeof value) {
    case 'string':
      return redactString(value);
    case 'bigint':
      return value.toString();
    case 'object':
      return value === null ? null : redactObject(value, depth);
    case 'function':
    case 'symbol':
      return undefined;
    default:
      return value;
  }
}

function redactObject(value: object, depth: number): unknown {
  if (depth >= maxDepth) return '[deep]';
  if (value instanceof Error) return describeError(value, depth);
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? 'invalid date' : value.toISOString();
  if (ArrayBuffer.isView(value)) return `[${value.byteLength} bytes]`;
  if (Array.isArray(value)) return value.slice(0, maxEntries).map((entry) => redact(entry, '', depth + 1));
  if (value instanceof Set) return redactObject([...value], depth);
  const entries = value instanceof Map ? [...value.entries()] : Object.entries(value);
  const copy: Record<string, unknown> = {};
  for (const [name, entry] of entries.slice(0, maxEntries)) copy[String(name)] = redact(entry, String(name), depth + 1);
  return copy;
}

/**
 * Only what identifies the failure. Database drivers hang rows, queries and parameters on their errors; those can hold
 * anything and are left out.
 */
function describeError(error: Error, depth: number): unknown {
  const { code, reason } = error as { code?: unknown; reason?: unknown };
  return {
    name: error.name,
    message: redactString(error.message),
    ...(typeof code === 'string' || typeof code === 'number' ? { code } : {}),
    ...(typeof reason === 'string' ? { reason: redactString(reason) } : {}),
    stack: redactString((error.stack ?? '').split('\n').slice(1, 12).join('\n')),
    ...(error.cause === undefined ? {} : { cause: redact(error.cause, '', depth + 1) }),
  };
}
