/** SPIFFE-ID §2, strictly: what is accepted here has exactly one spelling. */
export interface SpiffeId {
  trustDomain: string;
  /** Begins with `/`, and is never empty: an ID without a path names the trust domain, which is no workload. */
  path: string;
}

export const maxSpiffeIdLength = 2048;
const trustDomainName = /^[a-z0-9._-]{1,255}$/;
const pathSegment = /^[A-Za-z0-9._-]+$/;
const scheme = 'spiffe://';

export function isTrustDomainName(name: string): boolean {
  return trustDomainName.test(name);
}

/** §2.2: no empty segment, no `.` or `..`, no percent-encoding. */
export function isPathSegment(segment: string): boolean {
  return pathSegment.test(segment) && segment !== '.' && segment !== '..';
}

/** Undefined when it is not a workload's SPIFFE ID. Ports, user info, queries and fragments fall to the character sets. */
export function parseSpiffeId(id: string): SpiffeId | undefined {
  if (id.length > maxSpiffeIdLength || !id.startsWith(scheme)) return undefined;
  const [trustDomain = '', ...segments] = id.slice(scheme.length).split('/');
  if (!isTrustDomainName(trustDomain) || segments.length === 0 || !segments.every(isPathSegment)) return undefined;
  return { trustDomain, path: `/${segments.join('/')}` };
}
