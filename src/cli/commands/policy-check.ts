import type { Command } from 'commander';
import type { Issue } from '../../config/issue.ts';
import { CliError } from '../cli-error.ts';
import { define, withJson } from '../define.ts';
import { line, toned } from '../output.ts';
import { printable } from '../printable.ts';
import { instant } from '../values.ts';

interface Options {
  config?: string;
  tenant?: string;
  strict?: boolean;
  at?: number;
  json?: boolean;
}

export function policyCheck(parent: Command): void {
  const command = define(parent, {
    name: 'check',
    summary: 'Check a folder of policy documents, without a broker',
    description:
      'Lists every mistake with file, line and column, and warns of what is unlikely to be meant: rules without effect, ' +
      'grants that nobody can use, reviews that are due, definitions that nothing uses. Exits with 9 when there is a ' +
      'mistake, and with --strict when there is a warning.',
    examples: [
      ['leasehold policy check', 'the folder "policy" here'],
      ['leasehold policy check policies --strict --json', 'in the CI of a policy repository'],
      ['leasehold policy check --config leasehold.yaml', 'with the names of targets, trust domains and environment'],
    ],
  });
  command
    .argument('[dir]', 'folder of the policy documents (default: that of --config, or "policy")')
    .option('--config <file>', 'the broker’s configuration, to know the names that it defines')
    .option('--tenant <name>', 'whose policy it is, where the configuration has several tenants')
    .option('--strict', 'a warning is a mistake')
    .option('--at <time>', 'which reviews are due then, instead of now', instant);
  withJson(command).action(async (directory: string | undefined, options: Options) => {
    const { examinePolicy } = await import('../policy-examine.ts');
    const { result, issues, warnings } = await examinePolicy(directory, options.config, options.tenant, options.at);
    const failed = issues.length > 0 || (options.strict === true && warnings.length > 0);
    if (options.json === true) {
      const revision = result.ok ? result.revision.digest : undefined;
      line(JSON.stringify({ valid: !failed, policyRevision: revision, mistakes: issues, warnings }));
    } else {
      for (const issue of issues) line(shown(issue, 'mistake'));
      for (const issue of warnings) line(shown(issue, 'warning'));
    }
    if (failed) {
      const counts = [count(issues.length, 'mistake'), count(warnings.length, 'warning')].filter((text) => text !== '');
      throw new CliError('configInvalid', `the policy has ${counts.join(' and ')}; mend what is listed and try again`, {
        reason: 'CONFIG_INVALID',
      });
    }
    if (options.json === true || !result.ok) return;
    const { revision } = result;
    const warned = warnings.length === 0 ? '' : `, with ${count(warnings.length, 'warning')}`;
    line(`valid${warned}: ${revision.agents.size} agents, ${revision.tools.size} tools, revision ${revision.digest}`);
  });
}

function count(number: number, what: string): string {
  return number === 0 ? '' : `${number} ${what}${number === 1 ? '' : 's'}`;
}

function shown(issue: Issue, severity: 'mistake' | 'warning'): string {
  const place = `${issue.file}:${issue.line}:${issue.column}:`;
  const field = issue.path === '' ? '' : ` ${issue.path}:`;
  const hint = issue.hint === undefined ? '' : toned(`; ${printable(issue.hint)}`, 'dim');
  const tone = severity === 'mistake' ? 'bad' : 'warn';
  return `${printable(place)} ${toned(severity, tone)}:${printable(field)} ${printable(issue.message)}${hint}`;
}
