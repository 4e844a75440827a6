import { BrokerError, fieldInvalid, type FieldViolation } from './errors.ts';

export type ArgumentValue = string | number | boolean;
/** What one use of a tool is about, as its agent declares it: `{ repository: 'acme/shop', amount: 40 }`. */
export type Arguments = Readonly<Record<string, ArgumentValue>>;

export const argumentTypes = ['string', 'integer', 'number', 'boolean'] as const;
export type ArgumentType = (typeof argumentTypes)[number];

/** Bounds on one argument. A tool's tier declares them, and obligations narrow them. */
export interface ArgumentLimit {
  enum?: readonly (string | number)[];
  minimum?: number;
  maximum?: number;
  maxLength?: number;
}

export interface ArgumentSpec extends ArgumentLimit {
  type: ArgumentType;
  required: boolean;
  description: string;
  /** The whole of a text has to match. Its cost was bounded when the tool was loaded. */
  pattern?: string;
}

export type ArgumentSpecs = Readonly<Record<string, ArgumentSpec>>;
export type ArgumentLimits = Readonly<Record<string, ArgumentLimit>>;

/** Arguments with the digest that approvals and audit events name them by. */
export interface DeclaredArguments {
  values: Arguments;
  /** `sha256:<hex>` of the canonical form. */
  digest: string;
}

const maxArguments = 32;
const maxBytes = 4_096;
export const defaultMaxLength = 256;
const namePattern = /^[a-z][a-z0-9_]{0,62}$/;

/** No arguments at all; the digest is that of `{}`. */
export const noArguments: DeclaredArguments = {
  values: Object.freeze({}),
  digest: 'sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a',
};

/** Canonical JSON (RFC 8785): ECMAScript's own spelling of numbers and text is the canonical one, so only the order is ours. */
export function canonicalArguments(args: Arguments): string {
  const members = Object.keys(args)
    .sort()
    .map((name) => `${JSON.stringify(name)}:${JSON.stringify(args[name])}`);
  return `{${members.join(',')}}`;
}

/** `sha256` gives lower-case hex; hashing is the caller's, because the domain imports nothing. */
export function argumentsDigest(args: Arguments, sha256: (text: string) => string): string {
  return `sha256:${sha256(canonicalArguments(args))}`;
}

/**
 * What a caller sent, as arguments: few, flat and short, whatever any tool declares. Throws FIELD_INVALID naming
 * `arguments.<name>`.
 */
export function boundedArguments(sent: Readonly<Record<string, unknown>>): Arguments {
  const names = Object.keys(sent);
  if (names.length > maxArguments) throw fieldInvalid('arguments', `must be at most ${maxArguments}`);
  const args: Record<string, ArgumentValue> = {};
  for (const name of names) {
    // Anything else could not be declared, and is not repeated to logs and screens.
    if (!namePattern.test(name)) {
      throw fieldInvalid('arguments', 'names begin with a lower-case letter, then at most 62 of a-z, 0-9 and _');
    }
    const value = sent[name];
    const field = `arguments.${name}`;
    if (typeof value === 'string') {
      if (!value.isWellFormed()) throw fieldInvalid(field, 'is not well-formed text');
    } else if (typeof value === 'number') {
      if (!Number.isFinite(value)) throw fieldInvalid(field, 'must be a finite number');
    } else if (typeof value !== 'boolean') {
      throw fieldInvalid(field, 'must be a text, a number, true or false');
    }
    args[name] = value;
  }
  // A character has one to three bytes per UTF-16 unit; only what may be too long is counted exactly.
  const canonical = canonicalArguments(args);
  if (canonical.length > maxBytes || utf8Length(canonical) > maxBytes) {
    throw fieldInvalid('arguments', `must be at most ${maxBytes} bytes as JSON`);
  }
  return args;
}

/** Throws FIELD_INVALID with a violation for each argument that the tier does not take as it was sent. */
export function checkArguments(name: string, specs: ArgumentSpecs, args: Arguments): void {
  const violations: FieldViolation[] = [];
  const add = (argument: string, description: string) =>
    violations.push({ field: `arguments.${argument}`, description });
  for (const [argument, value] of Object.entries(args)) {
    const spec = Object.hasOwn(specs, argument) ? specs[argument] : undefined;
    if (spec === undefined) {
      const taken = Object.keys(specs);
      add(
        argument,
        `is not an argument of ${name}; ${taken.length === 0 ? 'it takes none' : `it takes ${taken.join(', ')}`}`,
      );
    } else {
      const fault = typeFault(spec.type, value) ?? limitFault(spec, value) ?? patternFault(spec, value);
      if (fault !== undefined) add(argument, fault);
    }
  }
  for (const [argument, spec] of Object.entries(specs)) {
    if (spec.required && !Object.hasOwn(args, argument)) add(argument, `is required by ${name}`);
  }
  const [first] = violations;
  if (first !== undefined) {
    throw new BrokerError('FIELD_INVALID', `${first.field}: ${first.description}`, { violations });
  }
}

/** Why a value does not keep to a limit; undefined when it does. */
export function limitFault(limit: ArgumentLimit, value: ArgumentValue): string | undefined {
  if (limit.enum !== undefined && !limit.enum.some((allowed) => allowed === value)) {
    return limit.enum.length === 0 ? 'may not have any value here' : `must be one of ${limit.enum.join(', ')}`;
  }
  if (typeof value === 'number') {
    if (limit.minimum !== undefined && value < limit.minimum) return `must be at least ${limit.minimum}`;
    if (limit.maximum !== undefined && value > limit.maximum) return `must be at most ${limit.maximum}`;
  }
  if (typeof value === 'string' && limit.maxLength !== undefined && value.length > limit.maxLength) {
    return `must be at most ${limit.maxLength} characters`;
  }
  return undefined;
}

/** The strictest of both. An empty `enum` means that nothing satisfies both. */
export function narrower(a: ArgumentLimit, b: ArgumentLimit): ArgumentLimit {
  const limit: ArgumentLimit = {};
  const least = (x: number | undefined, y: number | undefined) =>
    x === undefined ? y : y === undefined ? x : Math.min(x, y);
  const most = (x: number | undefined, y: number | undefined) =>
    x === undefined ? y : y === undefined ? x : Math.max(x, y);
  const both =
    a.enum === undefined ? b.enum : b.enum === undefined ? a.enum : a.enum.filter((value) => b.enum!.includes(value));
  const [minimum, maximum] = [most(a.minimum, b.minimum), least(a.maximum, b.maximum)];
  const maxLength = least(a.maxLength, b.maxLength);
  if (both !== undefined) limit.enum = both;
  if (minimum !== undefined) limit.minimum = minimum;
  if (maximum !== undefined) limit.maximum = maximum;
  if (maxLength !== undefined) limit.maxLength = maxLength;
  return limit;
}

export function typeFault(type: ArgumentType, value: ArgumentValue): string | undefined {
  switch (type) {
    case 'string':
    case 'boolean':
      return typeof value === type ? undefined : `must be ${type === 'string' ? 'a text' : 'true or false'}`;
    case 'number':
      return typeof value === 'number' ? undefined : 'must be a number';
    case 'integer':
      // Beyond this, JSON's numbers do not say which integer is meant.
      return Number.isSafeInteger(value) ? undefined : 'must be a whole number';
  }
}

const compiled = new Map<string, RegExp>();
const maxCompiled = 10_000;

function patternFault({ pattern }: ArgumentSpec, value: ArgumentValue): string | undefined {
  if (pattern === undefined || typeof value !== 'string') return undefined;
  let expression = compiled.get(pattern);
  if (expression === undefined) {
    if (compiled.size >= maxCompiled) compiled.clear();
    compiled.set(pattern, (expression = new RegExp(`^(?:${pattern})$`)));
  }
  return expression.test(value) ? undefined : `must match ${pattern}`;
}

function utf8Length(text: string): number {
  let length = 0;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    // Each half of a surrogate pair stands for two of the pair's four bytes.
    length += unit < 0x80 ? 1 : unit < 0x800 || (unit >= 0xd800 && unit <= 0xdfff) ? 2 : 3;
  }
  return length;
}
