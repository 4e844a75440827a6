import { writeFile } from 'node:fs/promises';
import { InvalidArgumentError, type Command } from 'commander';
import type { CaseResult, TestRun } from '../../policy/run-tests.ts';
import { CliError } from '../cli-error.ts';
import { define, withJson } from '../define.ts';
import { line, toned } from '../output.ts';
import { printable } from '../printable.ts';
import { configInvalid } from '../startup.ts';

interface Options {
  config?: string;
  tenant?: string;
  junit?: string;
  minCoverage?: number;
  json?: boolean;
}

export function policyTest(parent: Command): void {
  const command = define(parent, {
    name: 'test',
    summary: 'Put the questions of PolicyTest documents to the policy beside them',
    description:
      'Runs every case of every PolicyTest document of a folder, without a broker, and says which rules no case reaches. ' +
      'Exits with 6 when a case fails or too few rules are reached, and with 9 when a document is invalid.',
    examples: [
      ['leasehold policy test', 'the folder "policy" here'],
      ['leasehold policy test policies --junit results.xml --min-coverage 90', 'in the CI of a policy repository'],
    ],
  });
  command
    .argument('[dir]', 'folder of the policy documents (default: that of --config, or "policy")')
    .option('--config <file>', 'the broker’s configuration, to know the names that it defines')
    .option('--tenant <name>', 'whose policy it is, where the configuration has several tenants')
    .option('--junit <file>', 'write the results as JUnit XML')
    .option('--min-coverage <percent>', 'fail when fewer rules than this are reached', percent);
  withJson(command).action(async (directory: string | undefined, options: Options) => {
    const [{ examinePolicy }, { compileSources }, { runTests }, { junitOf }] = await Promise.all([
      import('../policy-examine.ts'),
      import('../../policy/compile.ts'),
      import('../../policy/run-tests.ts'),
      import('../../policy/junit.ts'),
    ]);
    const examined = await examinePolicy(directory, options.config, options.tenant);
    const { result, known } = examined;
    if (!result.ok || examined.issues.length > 0) throw configInvalid(examined.issues);
    const { sources, tests } = result;
    if (tests.length === 0) {
      throw new CliError(
        'usage',
        `${examined.directory} holds no PolicyTest documents; write one beside the policies`,
        {
          reason: 'NO_TESTS',
        },
      );
    }
    const revisions = new Map<string, typeof result.revision>();
    const run = runTests(tests, sources, (environment) => {
      if (environment === undefined) return result.revision;
      const key = JSON.stringify(environment);
      let revision = revisions.get(key);
      if (revision === undefined) {
        const compiled = compileSources(sources, { ...known, environment });
        if ('issues' in compiled) throw configInvalid(compiled.issues);
        revisions.set(key, (revision = compiled.revision));
      }
      return revision;
    });
    if (options.junit !== undefined) await writeFile(options.junit, junitOf(run.cases));
    report(run, options);
  });
}

function report(run: TestRun, options: Options): void {
  const failed = run.cases.filter(({ differences }) => differences.length > 0);
  const reached = run.rules.filter(({ covered }) => covered).length;
  const share = run.rules.length === 0 ? 100 : (reached / run.rules.length) * 100;
  const tooFew = options.minCoverage !== undefined && share < options.minCoverage;
  if (options.json === true) {
    const coverage = { rules: run.rules.length, reached, percent: Number(share.toFixed(1)) };
    const unreached = run.rules.filter(({ covered }) => !covered);
    line(JSON.stringify({ passed: failed.length === 0 && !tooFew, coverage, unreached, cases: run.cases }));
  } else {
    for (const one of failed) show(one);
    const passed = run.cases.length - failed.length;
    line(`${passed} of ${run.cases.length} cases as expected`);
    line(`${reached} of ${run.rules.length} rules reached (${share.toFixed(0)} %)`);
    for (const { rule, file, place } of run.rules.filter(({ covered }) => !covered)) {
      line(toned(`  not reached: ${printable(rule)} (${printable(file)}:${place.line}:${place.column})`, 'dim'));
    }
  }
  if (failed.length > 0) {
    const many = failed.length === 1 ? 'a case' : `${failed.length} cases`;
    throw new CliError('refused', `the policy answers ${many} otherwise than expected; mend the policy or the test`, {
      reason: 'POLICY_TEST_FAILED',
    });
  }
  if (tooFew) {
    throw new CliError(
      'refused',
      `${share.toFixed(1)} % of the rules are reached by a case, and --min-coverage wants ${options.minCoverage} %; add cases for those that are not`,
      { reason: 'POLICY_TEST_COVERAGE' },
    );
  }
}

/** Expected over got, so that the eye finds what differs; the policy's own reason below. */
function show(one: CaseResult): void {
  line(
    `${printable(`${one.file}:${one.place.line}:${one.place.column}:`)} ${toned('failed', 'bad')}: ${printable(one.name)}`,
  );
  for (const { field, expected, got, place } of one.differences) {
    line(`  ${field} (line ${place.line}, column ${place.column})`);
    line(toned(`    - expected  ${printable(expected)}`, 'good'));
    line(toned(`    + got       ${printable(got)}`, 'bad'));
  }
  line(toned(`  policy says: ${printable(one.reason)}`, 'dim'));
}

function percent(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !(value >= 0 && value <= 100))
    throw new InvalidArgumentError('is not a number from 0 to 100.');
  return value;
}
