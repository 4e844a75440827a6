import type { EventSubject } from '../../domain/signals/security-events.ts';
import { BrokerError } from '../../domain/errors.ts';
import { compileWorkloadTemplate } from '../oidc/workload-template.ts';
import { isObject } from '../token/strict-json.ts';

/** How subject identifiers of one format (RFC 9493 §3) are read. */
export interface SubjectRule {
  /** `iss_sub`, `opaque`, `uri`, `email`, `account`, `did`, `phone_number`, … */
  format: string;
  /** Of complex subjects (SSF 1.0 §3.2) only this member: `user`, `device`, `session`, … */
  member?: string | undefined;
  /** Members that the identifier must have with these values, such as `iss`. */
  require: Readonly<Record<string, string>>;
  /** One of them; names in braces are members of the identifier. */
  workload?: string | undefined;
  agent?: string | undefined;
  owner?: string | undefined;
}

type Identifier = Readonly<Record<string, unknown>>;
type Compiled = (identifier: Identifier) => EventSubject | undefined;

const maxIdentifiers = 32;
const maxLength = 2_048;

/** Throws when a template cannot be read. */
export function compileSubjects(rules: readonly SubjectRule[]): (subject: unknown) => EventSubject[] {
  const compiled = rules.map((rule) => ({ rule, read: compileRule(rule) }));
  return (subject) => {
    const found: EventSubject[] = [];
    for (const [identifier, member] of identifiersOf(subject).slice(0, maxIdentifiers)) {
      for (const { rule, read } of compiled) {
        if (rule.format !== identifier['format'] || (rule.member !== undefined && rule.member !== member)) continue;
        if (!Object.entries(rule.require).every(([name, value]) => textOf(identifier, name) === value)) continue;
        const target = read(identifier);
        if (target !== undefined) found.push(target);
      }
    }
    return found;
  };
}

/** The simple identifiers within a subject: itself, the members of a complex one, the aliases of one (RFC 9493 §3.2.8). */
function identifiersOf(subject: unknown): [identifier: Identifier, member: string | undefined][] {
  if (!isObject(subject)) return [];
  const { format, ...members } = subject;
  if (format === 'aliases') {
    const { identifiers } = members;
    return Array.isArray(identifiers) ? identifiers.filter(isObject).map((one) => [one, undefined]) : [];
  }
  if (format !== 'complex') return [[subject, undefined]];
  return Object.entries(members).flatMap(([member, one]) => (isObject(one) ? [[one, member]] : []));
}

function compileRule({ workload, agent, owner }: SubjectRule): Compiled {
  if (workload !== undefined) {
    const fill = compileWorkloadTemplate(workload);
    return (identifier) => {
      try {
        return { kind: 'workload', name: fill(identifier) };
      } catch (error) {
        // A member that is missing: this identifier is of nobody.
        if (error instanceof BrokerError) return undefined;
        throw error;
      }
    };
  }
  const kind = agent === undefined ? 'owner' : 'agent';
  const template = agent ?? owner ?? '';
  return (identifier) => {
    let complete = true;
    const name = template.replace(/\{([A-Za-z0-9_.-]{1,64})\}/g, (_whole, member: string) => {
      const value = textOf(identifier, member);
      if (value === undefined) complete = false;
      return value ?? '';
    });
    return complete && name !== '' && name.length <= maxLength ? { kind, name } : undefined;
  };
}

function textOf(identifier: Identifier, member: string): string | undefined {
  const value = Object.hasOwn(identifier, member) ? identifier[member] : undefined;
  return typeof value === 'string' && value !== '' ? value : undefined;
}
