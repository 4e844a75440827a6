import type { Arguments } from '../../domain/arguments.ts';
import type { Grant } from '../../domain/provider.ts';
import type { Instant } from '../../domain/time.ts';

/** A parameter's value: fixed, or a text with places for what is known of the lease. */
export type Template = string | number | boolean;

const places = ['ttl', 'task_id', 'lease_id', 'agent', 'tool', 'tier'];
const place = /\{\{\s*([^{}]*?)\s*\}\}/g;
const argument = /^args\.([a-z][a-z0-9_]{0,62})$/;
const maxLength = 1_024;

/** Checks the value of one parameter. Undefined when something is wrong with it. */
export function parseTemplate(value: unknown, issue: (message: string) => void): Template | undefined {
  if (typeof value === 'number' || typeof value === 'boolean') return value;
  if (typeof value !== 'string' || value.length > maxLength) {
    issue(`must be a text of at most ${maxLength} characters, a number, true or false`);
    return undefined;
  }
  for (const [, name = ''] of value.matchAll(place)) {
    if (!places.includes(name) && !argument.test(name)) {
      issue(
        `{{${name}}} is not known; there are ${places.map((each) => `{{${each}}}`).join(', ')} and {{args.<name>}}`,
      );
      return undefined;
    }
  }
  return value;
}

/** Names of the declared arguments that a parameter's value takes. */
export function argumentsIn(value: unknown): string[] {
  if (typeof value !== 'string') return [];
  return [...value.matchAll(place)].flatMap(([, name = '']) => argument.exec(name)?.[1] ?? []);
}

/**
 * The parameters of one call. Which ones there are is fixed by the tier; an agent fills in only what the tier's arguments
 * allow it to say. A parameter whose argument was not given is left out.
 */
export function fillParameters(
  parameters: Readonly<Record<string, Template>>,
  { lease }: Pick<Grant, 'lease'>,
  now: Instant,
): Record<string, Template> {
  const args: Arguments = lease.terms?.arguments.values ?? {};
  const values: Record<string, string> = {
    ttl: `${Math.max(1, Math.floor((lease.expiresAt - now) / 1_000))}s`,
    task_id: lease.taskId,
    lease_id: lease.leaseId,
    agent: lease.agent,
    tool: lease.tool,
    tier: lease.tier,
  };
  const filled: Record<string, Template> = {};
  for (const [name, template] of Object.entries(parameters)) {
    if (typeof template !== 'string') {
      filled[name] = template;
      continue;
    }
    let missing = false;
    filled[name] = template.replaceAll(place, (_, what: string) => {
      const declared = argument.exec(what)?.[1];
      const value = declared === undefined ? values[what] : Object.hasOwn(args, declared) ? args[declared] : undefined;
      if (value === undefined) missing = true;
      return String(value ?? '');
    });
    if (missing) delete filled[name];
  }
  return filled;
}
