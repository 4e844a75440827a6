import { limitFault, typeFault, type Arguments, type ArgumentSpecs, type ArgumentValue } from '../arguments.ts';
import { canonicalJson } from './canonical-json.ts';

/** All arguments of a call, or only the digest that its reporter made of them. */
export type SentArguments = { values: Readonly<Record<string, unknown>> } | { digest: string } | undefined;

export interface CallArguments {
  /** `sha256:<hex>` over the canonical form. */
  digest: string | undefined;
  /** What is kept: the arguments that the tier declares, within its limits. Anything else might be a secret. */
  declared: Arguments | undefined;
  /** All plain ones, for comparing with what the lease is bound to; not kept. */
  scalars: Arguments | undefined;
}

/** A text whose limit the tier does not say is not kept beyond this. */
const maxText = 256;

export function argumentsOfCall(
  sent: SentArguments,
  specs: ArgumentSpecs,
  sha256: (text: string) => string,
): CallArguments {
  if (sent === undefined) return { digest: undefined, declared: undefined, scalars: undefined };
  if ('digest' in sent) return { digest: sent.digest, declared: undefined, scalars: undefined };
  const digest = `sha256:${sha256(canonicalJson(sent.values))}`;
  const scalars: Record<string, ArgumentValue> = {};
  const declared: Record<string, ArgumentValue> = {};
  for (const [name, value] of Object.entries(sent.values)) {
    if (typeof value !== 'string' && typeof value !== 'number' && typeof value !== 'boolean') continue;
    Object.defineProperty(scalars, name, { value, enumerable: true });
    const spec = Object.hasOwn(specs, name) ? specs[name] : undefined;
    if (spec === undefined || typeFault(spec.type, value) !== undefined) continue;
    if (limitFault({ maxLength: maxText, ...spec }, value) !== undefined) continue;
    declared[name] = value;
  }
  return { digest, declared: Object.keys(declared).length === 0 ? undefined : declared, scalars };
}
