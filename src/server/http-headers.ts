import { cors } from '@connectrpc/connect';

/** Sent with every answer. The door serves programs; what serves people (the console) overrides the policy. */
export function securityHeaders(tls: boolean): Record<string, string> {
  return {
    'cache-control': 'no-store',
    'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
    'cross-origin-resource-policy': 'same-origin',
    'referrer-policy': 'no-referrer',
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    ...(tls ? { 'strict-transport-security': 'max-age=31536000' } : {}),
  };
}

/**
 * Scripts of a listed origin may call; none other. No cookies: `access-control-allow-credentials` is never sent, a caller
 * is known by the token that it puts in itself.
 */
export function corsHeaders(origin: string | undefined, allowed: ReadonlySet<string>): Record<string, string> {
  if (allowed.size === 0) return {};
  const vary = { vary: 'Origin' };
  if (origin === undefined || !allowed.has(origin)) return vary;
  return {
    ...vary,
    'access-control-allow-origin': origin,
    'access-control-expose-headers': [...cors.exposedHeaders, 'WWW-Authenticate', 'Retry-After'].join(', '),
    'cross-origin-resource-policy': 'cross-origin',
  };
}

export const preflightHeaders: Readonly<Record<string, string>> = {
  'access-control-allow-methods': cors.allowedMethods.join(', '),
  'access-control-allow-headers': [...cors.allowedHeaders, 'Authorization', 'Traceparent'].join(', '),
  'access-control-max-age': '7200',
};

const authority = /^(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?$/;

/** `hosts` empty: any well-formed name. Otherwise only those, so that a name rebound to this address reaches nothing. */
export function isHostAccepted(host: string | undefined, hosts: ReadonlySet<string>): boolean {
  if (host === undefined || !authority.test(host)) return false;
  return hosts.size === 0 || hosts.has(host.replace(/:\d+$/, '').toLowerCase());
}
