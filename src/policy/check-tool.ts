import { suggestion } from '../config/suggest.ts';
import { quote } from '../config/schema.ts';
import type { FieldPath, SourceDocument } from '../config/yaml-document.ts';
import { validateJwtTierOptions } from '../providers/jwt/provider.ts';
import type { OptionIssue } from '../providers/options.ts';
import { validateTierOptions } from '../providers/postgres/options.ts';
import { validateVaultTierOptions, vaultTierFault } from '../providers/vault/options.ts';
import { bounds, inheritTtl } from './defaults.ts';
import type { DefaultsDocument, ProviderName, TierSpec, ToolDocument } from './documents.ts';
import type { KnownNames } from './known-names.ts';
import { regexpFault } from './regexp-check.ts';

/** Every kind of mistake comes with what to do about it. */
export type Report = (source: SourceDocument, path: FieldPath, message: string, hint: string) => void;

const providers: Record<string, (options: Readonly<Record<string, unknown>>, path: string) => OptionIssue[]> = {
  jwt: validateJwtTierOptions,
  postgres: validateTierOptions,
  vault: validateVaultTierOptions,
};
/** A pattern is tried on every text of a request; see `regexpFault`. */
const maxPatternText = 256;

export function checkTool(
  report: Report,
  source: SourceDocument,
  tool: ToolDocument,
  defaults: DefaultsDocument | undefined,
  known: KnownNames,
): void {
  const { resource, tiers } = tool.spec;
  // RFC 8707 §2: an absolute URI without a fragment.
  if (!URL.canParse(resource) || resource.includes('#')) {
    report(
      source,
      ['spec', 'resource'],
      'is not an absolute URI without a fragment',
      'write it like https://reports.acme.test',
    );
  }
  checkToolTtl(report, source, tool, defaults);
  for (const [name, tier] of Object.entries(tiers)) {
    const path = ['spec', 'tiers', name];
    checkTierTtl(report, source, path, tool, tier, defaults);
    checkArgumentSpecs(report, source, [...path, 'arguments'], tier);
    checkProvider(report, source, path, tier, known);
  }
}

function checkProvider(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  tier: TierSpec,
  known: KnownNames,
): void {
  if (!Object.hasOwn(providers, tier.provider)) {
    report(
      source,
      [...path, 'provider'],
      `there is no provider ${quote(tier.provider)}`,
      suggestion(tier.provider, Object.keys(providers), 'providers'),
    );
    return;
  }
  for (const other of Object.keys(providers) as ProviderName[]) {
    if (other !== tier.provider && tier[other] !== undefined) {
      report(
        source,
        [...path, other],
        `has options of ${other}, but its provider is ${tier.provider}`,
        `remove them, or say provider: ${other}`,
      );
    }
  }
  const options = tier[tier.provider as ProviderName];
  if (options === undefined && tier.provider !== 'jwt') {
    report(source, path, `${quote(tier.provider)} is missing`, `add the provider's options under ${tier.provider}:`);
    return;
  }
  for (const issue of providers[tier.provider]!(options ?? {}, '')) {
    const steps = [...issue.path.matchAll(/[^.[\]]+/g)].map(([step]) => (/^\d+$/.test(step) ? Number(step) : step));
    report(
      source,
      [...path, tier.provider, ...steps],
      issue.message,
      `docs/policies.md lists the options of ${tier.provider}`,
    );
  }
  if (tier.provider === 'vault') checkVault(report, source, path, tier, options ?? {}, known);
  const target = options?.['target'];
  if (typeof target === 'string' && known.knownTargets !== undefined && !known.knownTargets.has(target)) {
    report(
      source,
      [...path, tier.provider, 'target'],
      `the configuration has no target ${quote(target)}`,
      suggestion(target, known.knownTargets, 'targets'),
    );
  }
}

function checkVault(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  tier: TierSpec,
  options: Readonly<Record<string, unknown>>,
  known: KnownNames,
): void {
  const fault = vaultTierFault(options, tier.revocation, Object.keys(tier.arguments ?? {}));
  if (fault !== undefined) report(source, [...path, ...fault.path], fault.message, fault.hint);
  const { server } = options;
  if (typeof server === 'string' && known.knownVaults !== undefined && !known.knownVaults.has(server)) {
    report(
      source,
      [...path, 'vault', 'server'],
      `the configuration has no Vault server ${quote(server)}`,
      suggestion(server, known.knownVaults, 'servers'),
    );
  }
}

function checkToolTtl(
  report: Report,
  source: SourceDocument,
  tool: ToolDocument,
  defaults: DefaultsDocument | undefined,
): void {
  const { ttl, beyond } = inheritTtl(defaults, tool, undefined);
  for (const { bound, message, hint } of beyond) report(source, ['spec', 'ttl', bound], message, hint);
  if (beyond.length === 0 && tool.spec.ttl !== undefined) checkOrder(report, source, ['spec', 'ttl'], ttl, 'tool');
}

function checkTierTtl(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  tool: ToolDocument,
  tier: TierSpec,
  defaults: DefaultsDocument | undefined,
): void {
  const { ttl, beyond } = inheritTtl(defaults, tool, tier);
  const own = beyond.filter(({ level }) => level === 'tier');
  for (const { bound, message, hint } of own) report(source, [...path, 'ttl', bound], message, hint);
  const missing = bounds.filter((bound) => ttl[bound] === undefined);
  if (missing.length > 0) {
    const [first] = missing;
    const where = tier.ttl === undefined ? path : [...path, 'ttl'];
    const names = missing.map((bound) => quote(tier.ttl === undefined ? `ttl.${bound}` : bound)).join(' and ');
    report(
      source,
      where,
      `${names} ${missing.length === 1 ? 'is' : 'are'} missing`,
      `add ${first}: here, under spec.ttl of the tool, or in a Defaults document`,
    );
  } else if (beyond.length === 0 && tier.ttl !== undefined) checkOrder(report, source, [...path, 'ttl'], ttl, 'tier');
}

export function checkOrder(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  { min, default: usual, max }: ReturnType<typeof inheritTtl>['ttl'],
  level: 'organisation' | 'tool' | 'tier',
): void {
  // Told where this level states one of the two; another level's pair is that level's mistake.
  const at = (one: typeof min, other: typeof min, names: [string, string], comparison: string) => {
    const stated = one!.level === level ? names[0] : names[1];
    if (one!.level !== level && other!.level !== level) return;
    report(source, [...path, stated], comparison, 'min ≤ default ≤ max');
  };
  if (min !== undefined && usual !== undefined && min.millis > usual.millis) {
    at(
      min,
      usual,
      ['min', 'default'],
      `${min.level === level ? 'is longer than default' : 'is shorter than min'} (${min.level === level ? `${min.text} > ${usual.text}` : `${usual.text} < ${min.text}`})`,
    );
  }
  if (usual !== undefined && max !== undefined && usual.millis > max.millis) {
    at(
      usual,
      max,
      ['default', 'max'],
      `${usual.level === level ? 'is longer than max' : 'is shorter than default'} (${usual.level === level ? `${usual.text} > ${max.text}` : `${max.text} < ${usual.text}`})`,
    );
  }
}

function checkArgumentSpecs(report: Report, source: SourceDocument, path: FieldPath, tier: TierSpec): void {
  for (const [name, spec] of Object.entries(tier.arguments ?? {})) {
    const at = [...path, name];
    const isText = spec.type === 'string';
    const isNumber = spec.type === 'integer' || spec.type === 'number';
    const meaningless = [
      ...(isText ? ['minimum', 'maximum'] : []),
      ...(isNumber ? ['pattern', 'maxLength'] : []),
      ...(isText || isNumber ? [] : ['enum', 'minimum', 'maximum', 'pattern', 'maxLength']),
    ];
    for (const field of meaningless) {
      if (field in spec) report(source, [...at, field], `has no meaning for type ${spec.type}`, 'remove it');
    }
    const wrong = (spec.enum ?? []).findIndex((value) =>
      isText
        ? typeof value !== 'string'
        : spec.type === 'integer'
          ? !Number.isSafeInteger(value)
          : typeof value !== 'number',
    );
    if (wrong >= 0 && (isText || isNumber)) {
      report(
        source,
        [...at, 'enum', wrong],
        `is not of type ${spec.type}`,
        isText ? 'put it in quotes' : 'write a number, without quotes',
      );
    }
    if (isNumber && spec.minimum !== undefined && spec.maximum !== undefined && spec.minimum > spec.maximum) {
      const message = `is greater than maximum (${spec.minimum} > ${spec.maximum})`;
      report(source, [...at, 'minimum'], message, 'no number would fit');
    }
    if (!isText || spec.pattern === undefined) continue;
    // As it will be used; what is no expression by itself must not become one by the brackets.
    const fault = isExpression(spec.pattern)
      ? regexpFault(`^(?:${spec.pattern})$`)
      : 'the pattern is not a regular expression';
    if (fault !== undefined) report(source, [...at, 'pattern'], fault, 'enum often does');
    if ((spec.maxLength ?? 0) > maxPatternText) {
      const message = `is more than ${maxPatternText}, and the text has a pattern to match`;
      report(source, [...at, 'maxLength'], message, `say at most ${maxPatternText}, or leave the pattern out`);
    }
  }
}

function isExpression(pattern: string): boolean {
  try {
    new RegExp(pattern);
    return true;
  } catch {
    return false;
  }
}
