import { isPathSegment, isTrustDomainName, maxSpiffeIdLength } from '../spiffe-id.ts';
import { invalid } from '../token/refusal.ts';
import { claimText, findClaim } from './find-claim.ts';

type Segment = string | { before: string; claim: string; after: string };

const placeholder = /^([^{}]*)\{([^{}]+)\}([^{}]*)$/;
const literal = /^[A-Za-z0-9._-]*$/;

/**
 * Maps a token's claims to a canonical workload by a template such as
 * `spiffe://acme.test/github/{repository_id}/{job_workflow_ref}`.
 *
 * Different claims always give different workloads, and a claim never reaches beyond its own path segment:
 * - a segment holds at most one claim, so that `{a}-{b}` cannot be read in two ways;
 * - in a value, `A-Z a-z 0-9 . -` stay, `_` becomes `__`, and every other byte of its UTF-8 becomes `_` and two hex
 *   digits: `/` is `_2f`, `@` is `_40`. No percent-encoding, which a SPIFFE ID may not hold;
 * - a value that is `.` or `..` is written `_2e` or `_2e_2e`; an empty one is refused.
 *
 * A template need not be a SPIFFE ID (`{sub}`, `ci/{sub}`), but two issuers of a tenant need templates that differ in their
 * literal part, or they speak for each other's workloads.
 */
export function compileWorkloadTemplate(template: string): (claims: Readonly<Record<string, unknown>>) => string {
  const spiffe = /^spiffe:\/\/([^/]*)\/(.*)$/s.exec(template);
  if (spiffe === null ? template.includes(':') : !isTrustDomainName(spiffe[1]!)) {
    throw new Error(`workload template ${template}: begin with spiffe://<trust domain>/, or use no scheme`);
  }
  const prefix = spiffe === null ? '' : `spiffe://${spiffe[1]}/`;
  const segments = (spiffe?.[2] ?? template).split('/').map((text) => parseSegment(text, template));
  if (segments.every((segment) => typeof segment === 'string')) {
    throw new Error(`workload template ${template}: names no claim, so that every token would be the same workload`);
  }

  return (claims) => {
    const workload = prefix + segments.map((segment) => renderSegment(segment, claims)).join('/');
    if (workload.length > maxSpiffeIdLength) {
      throw invalid(
        `The workload that the attestation names is longer than ${maxSpiffeIdLength} bytes. Shorten its claims.`,
      );
    }
    return workload;
  };
}

function parseSegment(text: string, template: string): Segment {
  if (isPathSegment(text)) return text;
  const [, before = '', claim = '', after = ''] = placeholder.exec(text) ?? [];
  if (claim === '' || !literal.test(before) || !literal.test(after)) {
    throw new Error(`workload template ${template}: a segment is literal (A-Z a-z 0-9 . _ -) with at most one {claim}`);
  }
  return { before, claim, after };
}

function renderSegment(segment: Segment, claims: Readonly<Record<string, unknown>>): string {
  if (typeof segment === 'string') return segment;
  const value = claimText(findClaim(claims, segment.claim));
  if (value === undefined || value === '') {
    throw invalid(
      `The attestation has no claim \`${segment.claim}\`, which names the workload. Get a token that has it.`,
    );
  }
  return segment.before + encode(value) + segment.after;
}

function encode(value: string): string {
  if (value === '.' || value === '..') return value.replaceAll('.', '_2e');
  return value
    .replaceAll('_', '__')
    .replace(/[^A-Za-z0-9._-]/gu, (character) =>
      Array.from(Buffer.from(character), (byte) => `_${byte.toString(16).padStart(2, '0')}`).join(''),
    );
}
