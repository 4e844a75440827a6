import { isObject } from '../token/strict-json.ts';

type Claims = Readonly<Record<string, unknown>>;

/**
 * A claim by its name. The literal name comes first, since names may hold dots (`kubernetes.io`); then the name is
 * read as a path, longest first member first: `kubernetes.io.serviceaccount.name`.
 */
export function findClaim(claims: Claims, name: string): unknown {
  if (Object.hasOwn(claims, name)) return claims[name];
  for (let dot = name.lastIndexOf('.'); dot > 0; dot = name.lastIndexOf('.', dot - 1)) {
    const first = name.slice(0, dot);
    const inner = Object.hasOwn(claims, first) ? claims[first] : undefined;
    const found = isObject(inner) ? findClaim(inner, name.slice(dot + 1)) : undefined;
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Whether a claim has one of the values; a list (`groups`) when one of its members has. */
export function claimHasOneOf(value: unknown, wanted: readonly string[]): boolean {
  if (Array.isArray(value)) return value.some((member) => !Array.isArray(member) && claimHasOneOf(member, wanted));
  const text = claimText(value) ?? (typeof value === 'boolean' ? String(value) : undefined);
  return text !== undefined && wanted.includes(text);
}

/** Issuers write ids as strings or as whole numbers; nothing else has one spelling. */
export function claimText(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  return Number.isSafeInteger(value) ? String(value) : undefined;
}
